"""`--print-config`: every option's effective value, and where it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import click
from click.core import ParameterSource

from services.runtime.process.configuration import PREFIX, settings_of

print_config_option = click.option(
    "--print-config", is_flag=True, help="Print every option's value and origin, and end."
)


def show_config(kind: type, values: Mapping[str, object]) -> None:
    """A line a setting: flag, value as JSON, origin. Passwords in addresses are left out."""
    names = [name for name, _, _ in settings_of(kind)]
    width = max(map(len, names)) + 2
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        click.echo(f"{flag:<{width}}  {_shown(values[name])}  ({_origin(name)})")


def _origin(name: str) -> str:
    match click.get_current_context().get_parameter_source(name):
        case ParameterSource.COMMANDLINE:
            return "flag"
        case ParameterSource.ENVIRONMENT:
            return PREFIX + name.upper()
        case _:
            return "default"


def _shown(value: object) -> str:
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(without_password(str(value)), ensure_ascii=False)


def without_password(text: str) -> str:
    """Without what an address says before its host, and after a question mark."""
    scheme, separator, rest = text.partition("://") if "://" in text else ("", "", text)
    if "@" in rest and (separator or re.search(":.*@", rest)):
        # where a password has a question mark, host and parameters cannot be told apart
        rest = "***" if "?" in rest else f"***@{rest.rpartition('@')[2]}"
    elif separator and "?" in rest:
        rest = f"{rest.partition('?')[0]}?***"
    return f"{scheme}{separator}{rest}"
