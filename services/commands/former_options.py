"""Earlier spellings of options, which work for one release and warn with the present one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from services.runtime.process.configuration import (
    Command,
    click_type,
    flag_of,
    settings_of,
    variable_of,
)

ORIGINS = "headwise.former_origins"
_GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class FormerOption:
    """Options of an earlier release that one present option, or standard variable, replaces.

    `names`: the earlier names, spelled like fields, with the types of their values. `present`: the
    replacement, as the warning names it. `translate`: present values by name, from all values and
    those given by an earlier name. `replaced`: the present option that must not be given too, or
    "". `has_variables`: False for options that never had an environment variable.
    """

    names: Mapping[str, click.ParamType[Any] | type]
    present: str
    translate: Callable[[Values, Values], Values]
    replaced: str = ""
    has_variables: bool = True


def renamed(kind: type, former: str, present: str) -> FormerOption:
    """A setting of a configuration that had another name."""
    value_type, field = {name: (t, field) for name, t, field in settings_of(kind)}[present]
    return FormerOption(
        {former: click_type(value_type, field)},
        flag_of(present),
        lambda _, given: {present: given[former]},
        replaced=present,
    )


def former_options(*formers: FormerOption) -> Callable[[Command], Command]:
    """A decorator that adds the earlier options, hidden, and translates them before the command."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def translated(**values: Any) -> Any:
            context = click.get_current_context()
            for former in formers:
                _translate(context, former, values)
            return command(**values)

        decorated: Any = translated
        for former in formers:
            for name, value_type in former.names.items():
                decorated = _hidden_option(name, value_type, former.has_variables)(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def _hidden_option(
    name: str, value_type: click.ParamType[Any] | type, has_variables: bool
) -> Callable[[Command], Command]:
    return click.option(
        flag_of(name, value_type),
        name,
        type=value_type,
        default=None,
        envvar=variable_of(name) if has_variables else None,
        hidden=True,
    )


def _translate(context: click.Context, former: FormerOption, values: Values) -> None:
    """Replace values by earlier names in `values`. Raises `click.UsageError` at two spellings."""
    collected = {name: values.pop(name) for name in former.names}
    origins = {
        name: _spelling(context, name)
        for name in collected
        if context.get_parameter_source(name) in _GIVEN
    }
    if not origins:
        return
    spellings = ", ".join(origins.values())
    if former.replaced and context.get_parameter_source(former.replaced) in _GIVEN:
        present = _spelling(context, former.replaced)
        raise click.UsageError(
            f"{spellings} and {present} are two spellings of one option: give {present} alone"
        )
    given = {name: collected[name] for name in origins}
    for name, value in former.translate(values, given).items():
        values[name] = value
        context.meta.setdefault(ORIGINS, {})[name] = spellings
    click.echo(
        f"Warning: {spellings} works until the next release: use {former.present} instead", err=True
    )


def _spelling(context: click.Context, name: str) -> str:
    """The flag or the environment variable by which a parameter was given."""
    if context.get_parameter_source(name) is ParameterSource.ENVIRONMENT:
        return variable_of(name)
    option = next(each for each in context.command.params if each.name == name)
    return option.opts[0]
