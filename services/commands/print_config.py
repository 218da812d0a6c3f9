"""`--print-config`: the effective value and the origin of every option."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import click
from click.core import ParameterSource

from services.commands.former_options import ORIGINS
from services.runtime.process.configuration import flag_of, settings_of, variable_of
from services.runtime.process.configuration_file import CONFIG_VARIABLE

print_config_option = click.option(
    "--print-config", is_flag=True, help="Print the value and the origin of every option, and exit."
)


def show_config(kind: type, values: Mapping[str, object]) -> None:
    """Print flag, value as JSON and origin of each setting. Passwords in addresses are hidden."""
    names = [name for name, _, _ in settings_of(kind)]
    width = max(map(len, names)) + 2
    for name in names:
        click.echo(f"{flag_of(name):<{width}}  {_shown(values[name])}  ({_origin(name)})")


def _origin(name: str) -> str:
    context = click.get_current_context()
    former: str | None = context.meta.get(ORIGINS, {}).get(name)
    if former:
        return former
    match context.get_parameter_source(name):
        case ParameterSource.COMMANDLINE:
            return "flag"
        case ParameterSource.ENVIRONMENT:
            return variable_of(name)
        case ParameterSource.DEFAULT_MAP:
            return f"file {context.meta[CONFIG_VARIABLE]}"
        case _:
            return "default"


def _shown(value: object) -> str:
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(without_password(str(value)), ensure_ascii=False)


def without_password(text: str) -> str:
    """The text, but of an address neither what stands before the host nor the query."""
    scheme, separator, rest = text.partition("://") if "://" in text else ("", "", text)
    if "@" in rest and (separator or re.search(":.*@", rest)):
        # where a password has a question mark, host and parameters cannot be told apart
        rest = "***" if "?" in rest else f"***@{rest.rpartition('@')[2]}"
    elif separator and "?" in rest:
        rest = f"{rest.partition('?')[0]}?***"
    return f"{scheme}{separator}{rest}"
