"""The files of a first run: each part's figures and log, outcomes, and what they come to."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.first_run.summary import Row, lines
from benchmarks.gpu.parts import BY_NAME, PARTS, Part


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a part: passed, wrong, failed, timed out or skipped, and why."""

    part: str
    word: str
    reason: str
    seconds: float
    limit: float

    @property
    def line(self) -> str:
        return f"{self.part:16} {self.word:10} {self.seconds:6.1f} s   {self.reason}"


class Outcomes:
    """Outcomes and figures in a folder; parts of earlier runs in it count, too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.parts = folder / "parts"
        self.parts.mkdir(parents=True, exist_ok=True)
        self._file = folder / "outcomes.json"
        self._known: dict[str, Outcome] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            for each in json.loads(self._file.read_text()):
                self._known[each["part"]] = Outcome(**each)

    def log(self, part: str) -> Path:
        return self.parts / f"{part}.log"

    def of(self, part: str) -> str:
        """Return the word for a part, or nothing if it has not run."""
        return self._known[part].word if part in self._known else ""

    def all_passed(self, parts: Iterable[Part]) -> bool:
        """Whether all of them passed, or had to be left out."""
        return all(self.of(part.name) in ("passed", "skipped") for part in parts)

    def has_figures(self, part: str) -> bool:
        return bool(self._document(part).get("figures"))

    def forget(self, part: str) -> None:
        """Drop what an earlier process of the part has left."""
        self._known.pop(part, None)
        for kind in ("json", "new", "xml", "log"):
            (self.parts / f"{part}.{kind}").unlink(missing_ok=True)

    def add(self, outcome: Outcome) -> None:
        self._known[outcome.part] = outcome
        known = [dataclasses.asdict(each) for each in self._known.values()]
        self._file.write_text(json.dumps(known, indent=2) + "\n")

    def write_summary(self) -> str:
        """Write `figures.json` and `summary.txt`; return the latter."""
        documents = {part.name: self._document(part.name) for part in PARTS}
        figures = {
            name: figure
            for document in documents.values()
            for name, figure in document.get("figures", {}).items()
        }
        first: dict[str, Any] = next((each for each in documents.values() if each), {})
        whole = {key: first.get(key) for key in ("date", "machine", "versions", "conditions")}
        whole |= {"outcomes": [dataclasses.asdict(each) for each in self._known.values()]}
        whole |= {"figures": figures}
        (self._folder / "figures.json").write_text(json.dumps(whole, indent=2) + "\n")
        rows = [row for name, document in documents.items() for row in _rows(name, document)]
        text = "\n".join([*lines(rows), "", *self._told()]) + "\n"
        (self._folder / "summary.txt").write_text(text)
        return text

    def _told(self) -> Sequence[str]:
        return [self._known[part.name].line for part in PARTS if part.name in self._known]

    def _document(self, part: str) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads((self.parts / f"{part}.json").read_text())
        except (OSError, ValueError):
            return {}
        return document


def _rows(part: str, document: dict[str, Any]) -> list[Row]:
    judged = BY_NAME[part].exact or not document.get("conditions", {}).get("tiny", True)
    figures = document.get("figures", {})
    return [Row(name=name, judged=judged, **figure) for name, figure in figures.items()]
