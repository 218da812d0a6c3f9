"""Configuration files: `--config FILE`, in TOML or YAML, with one value per option of a process.

A name is spelled as in the environment, without the prefix and in lower case: `max_queued = 64`.
An unknown name, a value of another type or beyond its bounds, and a name that occurs twice are
refused with the name and the file.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import click
import yaml

from services.runtime.process.configuration import PREFIX, Command, click_type, settings_of

CONFIG_VARIABLE = PREFIX + "CONFIG"

_READERS = {".toml": "TOML", ".yaml": "YAML", ".yml": "YAML"}
_TYPES: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a string", (str,)),
    pathlib.Path: ("a path in a string", (str,)),
}


def config_option(kind: type) -> Callable[[Command], Command]:
    """A decorator that adds `--config FILE`, whose values stand below variables and flags."""

    def apply(context: click.Context, _: click.Parameter, file: pathlib.Path | None) -> None:
        if file is not None:
            context.default_map = read_configuration(kind, file)
            context.meta[CONFIG_VARIABLE] = str(file)

    return click.option(
        "--config",
        type=click.Path(path_type=pathlib.Path),
        envvar=CONFIG_VARIABLE,
        show_envvar=True,
        is_eager=True,
        expose_value=False,
        callback=apply,
        help="Configuration file in TOML (.toml) or YAML (.yaml, .yml), with the names of the "
        "options below and _ for -. Environment variables and flags override its values.",
    )


def read_configuration(kind: type, file: pathlib.Path) -> dict[str, object]:
    """Values by setting. Raises `click.UsageError` that names the file and what is wrong in it."""
    settings = {name: (value_type, field) for name, value_type, field in settings_of(kind)}
    values = _read(file)
    unknown = [name for name in values if name not in settings]
    if unknown:
        raise click.UsageError(
            f"{file}: unknown name {unknown[0]}; known: {', '.join(sorted(settings))}"
        )
    return {name: _checked(file, name, value, *settings[name]) for name, value in values.items()}


def _read(file: pathlib.Path) -> Mapping[str, object]:
    form = _READERS.get(file.suffix.lower())
    if form is None:
        raise click.UsageError(f"{file}: a configuration file ends in {', '.join(_READERS)}")
    try:
        text = file.read_text(encoding="utf-8")
        # an empty YAML file is None
        values = tomllib.loads(text) if form == "TOML" else yaml.load(text, _Loader) or {}
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise click.UsageError(f"{file}: no {form}: {error}") from error
    if not isinstance(values, dict):
        raise click.UsageError(f"{file}: expected names with a value each")
    return values


def _checked(
    file: pathlib.Path,
    name: str,
    value: object,
    value_type: type,
    field: dataclasses.Field[Any],
) -> object:
    expected, accepted = _TYPES[value_type]
    # Python counts a bool among the integers
    if not isinstance(value, accepted) or (isinstance(value, bool) and value_type is not bool):
        raise click.UsageError(f"{file}: {name}: {value!r} is not {expected}")
    try:
        kind = click.types.convert_type(click_type(value_type, field))
        checked: object = kind.convert(value, None, None)
    except click.BadParameter as error:
        raise click.UsageError(f"{file}: {name}: {error.message}") from error
    return checked


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans (true and false alone), and no name twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name} occurs twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


# YAML 1.1 reads a bare on, off, yes or no as a boolean, and `cuda_graphs: on` names a choice
_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in resolvers if not tag.endswith(":bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))
