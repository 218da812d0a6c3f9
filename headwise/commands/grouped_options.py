"""Flags that reach a command as one value."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

Flag = Callable[[Callable[..., Any]], Callable[..., Any]]


def grouped(name: str, kind: type, flags: Sequence[Flag]) -> Flag:
    """A decorator that adds `flags` and gives the command their values as `name`, a `kind`.

    A field of the dataclass `kind` without a flag is "".
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_group(**arguments: Any) -> Any:
            fields = [field.name for field in dataclasses.fields(kind)]
            values = {field: arguments.pop(field, "") for field in fields}
            return command(**{name: kind(**values)}, **arguments)

        decorated: Callable[..., Any] = with_group
        for flag in reversed(flags):
            decorated = flag(decorated)
        return decorated

    return decorate
