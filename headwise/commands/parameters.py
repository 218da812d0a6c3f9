"""Policy parameters on the command line."""

from __future__ import annotations

import json

import click

_MOST_SHOWN = 80


def parse_parameters(pairs: tuple[str, ...]) -> dict[str, object]:
    """Parse pairs of `name=value` whose values are JSON. Raises `click.BadParameter`."""
    parameters: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            parameters[name] = json.loads(value, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            shown = pair if len(pair) < _MOST_SHOWN else f"{pair[:_MOST_SHOWN]}…"
            message = f"{shown!r} is not name=value, with a JSON value"
            raise click.BadParameter(message) from error
        if not (name and equals):
            raise click.BadParameter(f"{pair!r} is not name=value")
    return parameters


def _refuse_constant(name: str) -> object:
    """Raise `ValueError` for NaN and Infinity, which Python's reader takes and JSON has not."""
    raise ValueError(name)
