"""The budget of a policy: a ratio of the prompt's rows, rows per head, or bytes."""

from __future__ import annotations

import dataclasses
import math
import re

from kvstore.cache import POSITION_BYTES, LayerShape
from kvstore.plans import CacheFacts, LayerFacts, PromptFacts
from kvstore.rules import RATIO_ROUNDING

_SPELLING = re.compile(r"(\d{1,15}) ?(rows|bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """One of three is not 0.

    `ratio`: of the rows that the dense cache would hold. `rows`: per KV head, on average. `bytes`:
    of the whole cache as it is shipped, positions and scores included. Retrieval heads
    count, so what they take is taken from the others.
    """

    ratio: float = 0.0
    rows: int = 0
    bytes: int = 0

    @classmethod
    def parse(cls, spelling: str, most_rows: int) -> Budget | None:
        """`512 rows` or `16 MiB`; None for anything else, for 0 and for more than `most_rows`."""
        found = _SPELLING.fullmatch(spelling)
        if found is None or int(found[1]) == 0:
            return None
        count, unit = int(found[1]), found[2]
        if unit == "rows":
            return cls(rows=count) if count <= most_rows else None
        return cls(bytes=count * _UNITS[unit])

    def spelled(self) -> float | str:
        """Return the budget as a parameter: the inverse of `parse`, or the ratio itself."""
        if self.ratio:
            return self.ratio
        return f"{self.rows} rows" if self.rows else f"{self.bytes} bytes"


def visible_rows(prompt: PromptFacts, shape: LayerShape) -> int:
    """Rows of a head that a query after the prompt can still see."""
    return min(prompt.tokens, shape.sliding_window or prompt.tokens)


def share_of_others(
    budget: Budget, prompt: PromptFacts, cache: CacheFacts, *, mark_bytes: int
) -> float:
    """Return the share of rows, 0 to 1, that heads other than retrieval heads may keep.

    `mark_bytes`: bytes of the score and the log-weight of each of their rows.
    """
    allowed, whole, others = float(budget.bytes), 0.0, 0.0
    for index, shape in enumerate(cache.shapes):
        visible = visible_rows(prompt, shape)
        heads = sum(1 for layer, _ in cache.uncompressed_heads if layer == index)
        unit = cache.row_bytes(shape) + POSITION_BYTES if budget.bytes else 1
        whole += heads * visible * unit
        marks = mark_bytes if budget.bytes else 0
        others += (shape.kv_heads - heads) * visible * (unit + marks)
        allowed += shape.kv_heads * (budget.ratio * visible + budget.rows)
    return min(1.0, max(0.0, allowed - whole) / others) if others else 1.0


def rows_per_head(
    budget: Budget, prompt: PromptFacts, layer: LayerFacts, *, mark_bytes: int, floor_rows: int
) -> int:
    """Rows for each head of `layer` that is not kept whole, at least the floor."""
    share = share_of_others(budget, prompt, layer.cache, mark_bytes=mark_bytes)
    visible = visible_rows(prompt, layer.shape)
    return min(visible, max(floor_rows, math.floor(share * visible + RATIO_ROUNDING)))
