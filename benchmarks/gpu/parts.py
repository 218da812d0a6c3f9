"""The parts of the first run on a GPU: what each is called, its run and its seconds.

Nothing here is imported from outside the standard library, because the program that starts the
parts must run whatever is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

# seconds of the three runs: with a machine's start and the transfers some 14 minutes
RUN_SECONDS = {1: 230, 2: 190, 3: 250}
CEILINGS = "ceilings"
IMPORTS = "imports"


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A process of its own: `python -m benchmarks.gpu NAME`.

    `together`: parts of one run with the same word here run side by side. `exact`: its figures are
    errors and counts, which mean the same on a CPU; others are times.
    """

    name: str
    run: int
    seconds: float
    together: str = ""
    exact: bool = False


def _smoke(name: str) -> Part:
    return Part(f"smoke-{name}", 1, 60, together="smoke", exact=True)


PARTS = (
    Part(IMPORTS, 1, 40, exact=True),
    *map(_smoke, ("model", "fp8", "int8", "int8-int4", "int4", "retention", "gather", "prefill")),
    Part("tests-kernels", 1, 125, exact=True),
    Part("tests-services", 1, 60, exact=True),
    Part(CEILINGS, 2, 20),
    Part("attention", 2, 60),
    Part("small-pages", 2, 20),
    Part("one-sequence", 2, 20),
    Part("retention", 2, 30),
    Part("column-mass", 2, 35),
    Part("gather", 2, 20),
    Part("choosing", 2, 15),
    Part("step", 3, 85),
    Part("step-fused", 3, 120),
    Part("engine", 3, 60),
    Part("memcheck", 3, 45, exact=True),
)
BY_NAME = {part.name: part for part in PARTS}


def chosen(runs: Iterable[int], names: Iterable[str]) -> list[Part]:
    """Return the parts of the runs, or those named; a name also stands for `name-…`.

    Raises `KeyError` for a name that fits none.
    """
    wanted = list(names)
    if not wanted:
        return [part for part in PARTS if part.run in set(runs)]
    for name in wanted:
        if not any(_fits(part, name) for part in PARTS):
            raise KeyError(name)
    return [part for part in PARTS if any(_fits(part, name) for name in wanted)]


def _fits(part: Part, name: str) -> bool:
    return part.name == name or (name not in BY_NAME and part.name.startswith(f"{name}-"))
