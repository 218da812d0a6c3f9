"""A reason why a process cannot start."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from services.runtime.process.serve_error import ServeError


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """`subject` was looked at; `found` names the option and what is wrong, `advice` the remedy."""

    subject: str
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.found}. {self.advice}"


def require_none(problems: Iterable[Problem]) -> None:
    """Raise `ServeError` with the first problem."""
    for problem in problems:
        raise ServeError(str(problem))
