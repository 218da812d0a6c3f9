"""Flat rows of a paged head's slots, inside a Triton kernel."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def flat_rows(
    table: tl.tensor, slot: tl.tensor, valid: tl.tensor, PAGE_ROWS: tl.constexpr
) -> tl.tensor:
    """Return the flat rows of a head's slots, int64."""
    page = tl.load(table + slot // PAGE_ROWS, mask=valid, other=0).to(tl.int64)
    return page * PAGE_ROWS + slot % PAGE_ROWS
