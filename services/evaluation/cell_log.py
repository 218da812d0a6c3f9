"""Finished measurements, one JSON line each, so that a run that was cut off goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from kvstore.cache import ModelFingerprint
from kvstore.errors import InvalidParameter

# a cell's results by name: figures, or one figure a question or a position
Values: TypeAlias = Mapping[str, float | list[float]]

_FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class CellKey:
    """Key of a measurement: a part's case, and the setting's `key`."""

    part: str
    case: str
    setting: str


class CellLog:
    """An append-only file of one model's cells; a line that was cut off is dropped.

    Raises `InvalidParameter` if the file is of another model or no such log. For one writer.
    """

    def __init__(self, path: Path, model: ModelFingerprint) -> None:
        self._path = path
        self._head = {"headwise_eval": _FORMAT, "model": dataclasses.asdict(model)}
        self._cells: dict[CellKey, Values] = {}
        if path.exists() and path.stat().st_size:
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._head) + "\n")

    def __contains__(self, key: CellKey) -> bool:
        return key in self._cells

    def __getitem__(self, key: CellKey) -> Values:
        return self._cells[key]

    def __len__(self) -> int:
        return len(self._cells)

    def append(self, key: CellKey, values: Values) -> None:
        """Write a finished cell; it is on the disk's side when this returns."""
        line = json.dumps({**dataclasses.asdict(key), "values": values})
        with self._path.open("a") as file:
            file.write(line + "\n")
        self._cells[key] = values

    def _read(self) -> None:
        text = self._path.read_text()
        whole, newline, cut_off = text.rpartition("\n")
        if cut_off:
            self._path.write_text(whole + newline)
        try:
            head, *cells = map(json.loads, whole.splitlines())
        except ValueError as error:
            raise self._refused("is no log of measurements") from error
        if head != self._head:
            raise self._refused("holds measurements of another model or version")
        for cell in cells:
            key = CellKey(cell["part"], cell["case"], cell["setting"])
            self._cells[key] = cell["values"]

    def _refused(self, reason: str) -> InvalidParameter:
        return InvalidParameter("log", f"{self._path} {reason}; name another file")
