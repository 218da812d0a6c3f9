"""Results of the fidelity benchmark."""

from __future__ import annotations

import dataclasses

from services.evaluation.forced_runs import Measured


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Every part's results, in the order of its settings; `keys` are (name, found, cases)."""

    later_kept: list[Measured]
    rules_on: list[Measured]
    long: list[Measured]
    long_kept: list[Measured]
    copying: list[Measured]
    keys: list[tuple[str, int, int]]
