"""Configuration as frozen dataclasses: flag over `HEADWISE_*` variable over file over default.

A process declares its options as one dataclass composed of parts. `options_of` turns the dataclass
into command line flags, and `build` turns what click collected into a value of it. An unknown
`HEADWISE_*` variable or a bad value stops the process with an error that names it. The sources and
their origins are click's, because pydantic-settings (2.16) accepts an unknown `HEADWISE_*` variable
and does not report which source a value came from.
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
    """A field that is an option, with its default, its description and its bounds."""
    metadata = {
        "description": description,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
    }
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(kind: type) -> Iterator[tuple[str, type, dataclasses.Field[Any]]]:
    """Name, type and field of every setting of a configuration and of its parts."""
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types[field.name]):
            yield from settings_of(types[field.name])
        elif field.metadata:
            yield field.name, types[field.name], field


def options_of(kind: type) -> Callable[[Command], Command]:
    """A decorator that gives a click command one option per setting."""

    def decorate(command: Command) -> Command:
        for name, value_type, field in reversed(list(settings_of(kind))):
            command = click.option(
                flag_of(name, value_type),
                name,
                type=click_type(value_type, field),
                default=field.default,
                envvar=variable_of(name),
                help=field.metadata["description"],
                show_default=True,
                show_envvar=True,
            )(command)
        return command

    return decorate


def flag_of(name: str, value_type: object = str) -> str:
    """The flag of a setting; a boolean one has a negative beside it."""
    flag = name.replace("_", "-")
    return f"--{flag}/--no-{flag}" if value_type is bool else f"--{flag}"


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def click_type(value_type: type, field: dataclasses.Field[Any]) -> click.ParamType[Any] | type:
    """The click type that checks a setting's value against its bounds."""
    minimum, maximum = field.metadata["minimum"], field.metadata["maximum"]
    if field.metadata["choices"]:
        return click.Choice(field.metadata["choices"])
    if value_type is pathlib.Path:
        return click.Path(path_type=pathlib.Path)
    if value_type is int and (minimum is not None or maximum is not None):
        return click.IntRange(minimum, maximum)
    if value_type is float and (minimum is not None or maximum is not None):
        return click.FloatRange(minimum, maximum)
    return value_type


def build(kind: type[T], values: Mapping[str, object]) -> T:
    """The configuration that the collected values describe; each setting must have a value."""
    types = typing.get_type_hints(kind)
    arguments: dict[str, object] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        part = types[field.name]
        if dataclasses.is_dataclass(part):
            arguments[field.name] = build(part, values)  # type: ignore[arg-type]
        elif field.metadata or field.name in values:
            arguments[field.name] = values[field.name]
    return kind(**arguments)


def refuse_unknown_variables(environment: Mapping[str, str], known: set[str]) -> None:
    """Raise `click.UsageError` where the environment sets an unknown `HEADWISE_*` variable."""
    unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise click.UsageError(
            f"unknown environment variable {unknown[0]}; known: {', '.join(sorted(known))}"
        )
