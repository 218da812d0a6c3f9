"""A finding: its severity, and the remedy."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text


class Level(enum.StrEnum):
    """A warning serves, a problem does not."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """`subject` was looked at; `advice` is empty where nothing is to be done."""

    subject: str
    level: Level
    found: str
    advice: str = ""


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row a finding."""
    table = Table("", "", "found", "what to do")
    for finding in findings:
        # what a peer says of itself must not be read as markup
        cells = (finding.subject, Text(finding.level, _STYLES[finding.level]), finding.found)
        table.add_row(*(Text(c) if isinstance(c, str) else c for c in (*cells, finding.advice)))
    return table
