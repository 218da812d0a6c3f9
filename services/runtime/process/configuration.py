"""Configuration as frozen dataclasses: flag over `HEADWISE_*` environment over default.

A process declares its options as one dataclass composed of parts; `options_of` turns it into
command line flags, `build` turns what click collected back into the value. An unknown
`HEADWISE_*` variable or a bad value stops the process by name.
"""

from __future__ import annotations

import dataclasses
import pathlib
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

PREFIX = "HEADWISE_"

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])


def setting(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field that is a flag: its default, what it means, and its bounds."""
    metadata = {
        "description": description,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
    }
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(kind: type) -> Iterator[tuple[str, type, dataclasses.Field[Any]]]:
    """Every setting of a configuration, its parts' included: name, type, field."""
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types[field.name]):
            yield from settings_of(types[field.name])
        else:
            yield field.name, types[field.name], field


def options_of(kind: type) -> Callable[[Command], Command]:
    """A decorator that gives a click command one option per setting."""

    def decorate(command: Command) -> Command:
        for name, value_type, field in reversed(list(settings_of(kind))):
            flag = name.replace("_", "-")
            command = click.option(
                f"--{flag}/--no-{flag}" if value_type is bool else f"--{flag}",
                name,
                type=_click_type(value_type, field),
                default=field.default,
                envvar=PREFIX + name.upper(),
                help=field.metadata["description"],
                show_default=True,
                show_envvar=True,
            )(command)
        return command

    return decorate


def _click_type(value_type: type, field: dataclasses.Field[Any]) -> click.ParamType[Any] | type:
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    if field.metadata["choices"]:
        return click.Choice(field.metadata["choices"])
    if value_type is pathlib.Path:
        return click.Path(path_type=pathlib.Path)
    if value_type is int and (low is not None or high is not None):
        return click.IntRange(low, high)
    if value_type is float and (low is not None or high is not None):
        return click.FloatRange(low, high)
    return value_type


def build(kind: type[T], values: Mapping[str, object]) -> T:
    """The configuration from collected values; every setting must be among them."""
    types = typing.get_type_hints(kind)
    arguments: dict[str, object] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        part = types[field.name]
        is_part = dataclasses.is_dataclass(part)
        arguments[field.name] = build(part, values) if is_part else values[field.name]
    return kind(**arguments)


def refuse_unknown_variables(environment: Mapping[str, str], known: set[str]) -> None:
    """Stop where the environment sets a `HEADWISE_*` variable that means nothing here."""
    unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise click.UsageError(
            f"unknown environment variable {unknown[0]}; known: {', '.join(sorted(known))}"
        )
