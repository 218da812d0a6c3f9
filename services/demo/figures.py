"""The demo's figures as JSON, the same numbers that its tables show."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from headwise import Result


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """One answer of the demo: its text and its result."""

    text: str
    result: Result


def write_figures(file: pathlib.Path, answers: Mapping[str, Answered]) -> None:
    """Write every figure of every answer."""
    figures = {
        name: {"text": answer.text, **dataclasses.asdict(answer.result)}
        for name, answer in answers.items()
    }
    file.write_text(json.dumps(figures, indent=2) + "\n")
