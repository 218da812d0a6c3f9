"""Policy parameters on the command line."""

from __future__ import annotations

import json

import click


def parse_parameters(pairs: tuple[str, ...]) -> dict[str, object]:
    """Parse pairs of `name=value` whose values are JSON. Raises `click.BadParameter`."""
    parameters: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            parameters[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise click.BadParameter(f"{pair!r} is not name=value, with a JSON value") from error
        if not (name and equals):
            raise click.BadParameter(f"{pair!r} is not name=value")
    return parameters
