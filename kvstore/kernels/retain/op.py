"""Retention of all heads' rows at the end of a chunk: contract and dispatch.

It runs in two halves, because pages are taken in between: nothing in the pool changes before there
are enough pages.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvstore.kernels.paged_batch import PagedBatch
from kvstore.kernels.retain import cpu, reference
from kvstore.kernels.step_scratch import StepScratch


def decide(batch: PagedBatch, scratch: StepScratch) -> NDArray[np.int32]:
    """Decide which of a head's R held and m fed rows stay; return the counts after, `[B, L, H]`.

    Chunks may have different lengths m. Scores first change by the rule's `score_update`: `sum`
    adds `scratch.row_attention`; `decayed` multiplies held scores by `score_decay` once per fed
    token and then adds; `none` leaves them. A new row starts from 0. Then `keep_mask` is applied to
    all rows together, with `length + m` tokens seen. The new scores are written to
    `scratch.row_attention`, the decision to `scratch.stays`; the pool is only read.
    """
    if batch.on_triton:
        # imported where it can run: Triton is not there on every machine
        from kvstore.kernels.retain import kernel

        return kernel.decide(batch, scratch)
    form = cpu.decide if batch.on_cpu_in_f32 else reference.decide
    return form(batch, scratch)


def apply_decision(batch: PagedBatch, scratch: StepScratch, rows_after: NDArray[np.int32]) -> None:
    """Apply a decision to the slots; rows that stay keep their slots where possible.

    The tables already have the pages for `rows_after`; their `rows` are the counts before. New rows
    that stay take the slots of dropped rows in ascending order and are then appended. Slots that
    are still empty are filled from the tail. Metadata is written with the rows of heads that have
    any.
    """
    if batch.on_triton:
        from kvstore.kernels.retain import kernel

        kernel.apply_decision(batch, scratch, rows_after)
        return
    form = cpu.apply_decision if batch.on_cpu_in_f32 else reference.apply_decision
    form(batch, scratch, rows_after)
