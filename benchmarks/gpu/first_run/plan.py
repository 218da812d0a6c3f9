"""The order of the parts: ceilings first, a group side by side, within the seconds of a run."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gpu.first_run.outcomes import Outcome, Outcomes
from benchmarks.gpu.first_run.process import run_part
from benchmarks.gpu.parts import BY_NAME, CEILINGS, IMPORTS, RUN_SECONDS, Part
from benchmarks.gpu.requirements import missing

# the interpreter on two cores is so many times slower to begin and to end a part
_TINY_SLOWER = 8.0
# with less a part has not even imported torch
_LEAST_SECONDS = 5.0


class Plan:
    """Runs parts and keeps their outcomes. `slower` stretches all limits."""

    def __init__(self, outcomes: Outcomes, *, tiny: bool, slower: float = 1.0) -> None:
        self._outcomes = outcomes
        self._tiny = tiny
        self._slower = slower * (_TINY_SLOWER if tiny else 1.0)

    def run(self, parts: Sequence[Part]) -> None:
        """Run them, those of a run within its seconds; none after `imports` if that fails."""
        if lacking := missing():
            print("\n".join(lacking), flush=True)
        for number, of_run in itertools.groupby(self._with_ceilings(parts), lambda part: part.run):
            ends = time.monotonic() + RUN_SECONDS[number] * self._slower
            print(f"run {number}: {RUN_SECONDS[number] * self._slower:.0f} s at most", flush=True)
            for group in _groups(of_run):
                self._run_group(group, ends)
                if self._outcomes.of(IMPORTS) == "failed" and group[0].name == IMPORTS:
                    print("nothing else runs until imports succeed", flush=True)
                    return

    def _with_ceilings(self, parts: Sequence[Part]) -> list[Part]:
        """Return the parts, with the ceilings before shares of them if no folder has any."""
        needs = any(part.run > 1 and not part.exact for part in parts)
        if not needs or self._outcomes.has_figures(CEILINGS) or BY_NAME[CEILINGS] in parts:
            return list(parts)
        first = next(n for n, part in enumerate(parts) if part.run > 1)
        return [*parts[:first], BY_NAME[CEILINGS], *parts[first:]]

    def _run_group(self, group: Sequence[Part], ends: float) -> None:
        with ThreadPoolExecutor(min(len(group), os.cpu_count() or 1)) as pool:
            for outcome in pool.map(lambda part: self._run_one(part, ends), group):
                self._outcomes.add(outcome)
                print(outcome.line, flush=True)
        self._outcomes.write_summary()

    def _run_one(self, part: Part, ends: float) -> Outcome:
        left = ends - time.monotonic()
        seconds = min(part.seconds * self._slower, left)
        if seconds < _LEAST_SECONDS:
            return Outcome(part.name, "skipped", "no time is left in its run", 0.0, seconds)
        arguments = ["--folder", str(self._outcomes.parts), *(["--tiny"] if self._tiny else [])]
        self._outcomes.forget(part.name)
        try:
            return run_part(part, arguments, seconds, self._outcomes.log(part.name), os.environ)
        except OSError as error:
            # no process could be started: the next part may have one
            return Outcome(part.name, "failed", str(error), 0.0, seconds)


def _groups(parts: Iterable[Part]) -> list[list[Part]]:
    """Return the parts in order, those that run together as one group."""
    groups: list[list[Part]] = []
    for part in parts:
        if groups and part.together and groups[-1][0].together == part.together:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups
