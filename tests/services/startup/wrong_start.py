"""A start that must fail: what is wrong, and what the one line must say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]


@dataclasses.dataclass(frozen=True, slots=True)
class WrongStart:
    """`arguments` may name {model}, a copy of the tiny model after `damage`, and {folder}.

    The line must hold every text of `says`.
    """

    name: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]
    damage: Damage | None = None
    command: str = "prefill"
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def config(**values: object) -> Damage:
    """Set values of config.json; None removes one."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        held: dict[str, Any] = json.loads(path.read_text()) | values
        path.write_text(json.dumps({k: v for k, v in held.items() if v is not None}))

    return damage


def content(name: str, value: bytes) -> Damage:
    """Replace a file, or add one."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(value)

    return damage


def cut(name: str, share: float) -> Damage:
    """Keep the first part of a file."""

    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return damage


def without(*names: str) -> Damage:
    """Remove the named files."""

    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def both(*damages: Damage) -> Damage:
    """One damage after the other."""

    def damage(folder: Path) -> None:
        for each in damages:
            each(folder)

    return damage
