"""Compiles every kernel for a GPU that need not be there.

Prints each one's name, the bytes of shared memory that it takes, of attention's loop over tiles
that it is there and how often it spills a register, and how many products and sums of retention's
decision are rounded once. Run as a program: the interpreter must be off,
which Triton settles when it is imported.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu import decode_attention
from benchmarks.gpu.compiling import compiled_by
from benchmarks.gpu.listing import spills
from benchmarks.gpu.pool import fill
from benchmarks.gpu.sizes import TINY
from kvstore.cache import LayerShape
from kvstore.kernels.column_mass import kernel as column_mass
from kvstore.kernels.column_mass.input import ColumnMassInput
from kvstore.kernels.column_peak import kernel as column_peak
from kvstore.kernels.compact import kernel as compact
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.kernels.ragged_attention import attend_slice
from kvstore.kernels.ragged_attention import kernel as ragged_attention
from kvstore.kernels.ragged_attention.row_ends import row_ends
from kvstore.kernels.retain import decision
from kvstore.kernels.retain import kernel as retain
from kvstore.kernels.step_scratch import StepScratch
from kvstore.pool import BatchStep, PageCount, PagePool
from kvstore.row_codecs import KeyValueLayout, RowCodec
from kvstore.rule_table import rule_to_record
from kvstore.rules import RetentionRule, ScoreUpdate

HEADS, GROUP, SIZE, PAGE_ROWS, ROWS = 2, 4, 128, 16, 96
SCORED = RetentionRule(window=4, budget_rows=9, score_update=ScoreUpdate.DECAYED)
_DECISION = Path(decision.__file__).name


def rows_of(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, SIZE, dtype=torch.bfloat16)


def launch_prefill() -> None:
    q, k, sums = (
        rows_of(HEADS * GROUP, ROWS),
        rows_of(HEADS, ROWS),
        torch.zeros(HEADS * GROUP, ROWS),
    )
    column_mass.column_mass(
        torch.zeros(HEADS * GROUP, 9, ROWS),
        ColumnMassInput(
            q,
            k,
            sums,
            torch.arange(ROWS),
            edges=range(9),
            scale=0.1,
            sliding_window=None,
            value_norms=torch.zeros(HEADS, ROWS),
        ),
    )
    column_peak.column_peak(
        torch.zeros(HEADS * GROUP, ROWS), q, k, sums, ROWS, scale=0.1, sliding_window=None
    )


def launch_gather(spelling: str) -> None:
    layout = KeyValueLayout(RowCodec.parse(spelling), SIZE, torch.bfloat16)
    rows, ends = torch.arange(14, dtype=torch.int32), torch.tensor([7, 14], dtype=torch.int32)
    compact.gather_rows(rows_of(HEADS, ROWS), rows_of(HEADS, ROWS), rows, ends, layout)


def launch_all_of(codec: RowCodec, tokens: int, window: int | None) -> None:
    """Launch every kernel that reads or changes rows of a codec."""
    batch, scratch = a_batch(codec, tokens, window)
    q = rows_of(tokens, HEADS * GROUP)
    ragged_attention.attend(q, batch, 0, scratch, 0.1, window)
    row_ends(batch.on_device.rows, batch.on_device.ends)
    free = retain.FreePages.of(9, torch.arange(5, dtype=torch.int32))
    retain.retain(batch.on_device, scratch.on_device, free, free)
    retain.apply_decision(batch, scratch, retain.decide(batch, scratch))


def a_batch(
    codec: RowCodec, tokens: int, window: int | None, page_rows: int = PAGE_ROWS
) -> tuple[PagedBatch, StepScratch]:
    shape = LayerShape(HEADS, HEADS * GROUP, SIZE, window)
    pool = PagePool((shape,), pages=9, page_rows=page_rows, dtype=torch.bfloat16)
    pool.storage.keep_log_weights()
    sequence = pool.open(0, PageCount(2, 2), codec)
    sequence.tables.rules[...] = rule_to_record(SCORED)
    sequence.tables.weighted[...] = window is not None
    step = BatchStep.whole(
        [sequence], np.zeros((1, tokens), np.uint8), pool.new_staged_rows(tokens)
    )
    (part,) = step._groups
    return part.batch, part.scratch


def launch_in_float16(codec: RowCodec) -> None:
    """Attention to rows whose codes become float16."""
    sizes = dataclasses.replace(TINY, head_size=64, dtype=torch.float16)
    rows = torch.full((1, 1, sizes.kv_heads), PAGE_ROWS, dtype=torch.int32)
    decode_attention.step(fill(rows, sizes, codec=codec), sizes)()


def launch_at_large_pages() -> None:
    """Attention of a token with scores, in the largest tiles."""
    batch, scratch = a_batch(RowCodec(), 1, None, page_rows=ragged_attention.ROW_TILE)
    assert scratch.scored_layers == (True,)
    ragged_attention.attend(rows_of(1, HEADS * GROUP), batch, 0, scratch, 0.1, None)


def launch_all() -> None:
    launch_prefill()
    launch_gather("model")
    launch_gather("int8/int4")
    launch_all_of(RowCodec(), 1, None)
    launch_at_large_pages()
    launch_all_of(RowCodec.parse("int8"), 1, None)
    launch_all_of(RowCodec.parse("fp8/int4"), 4, 64)
    for spelling in ("int8", "fp8", "int4"):
        launch_in_float16(RowCodec.parse(spelling))


def main() -> None:
    for kernel in compiled_by(launch_all):
        # where memory's speed is wanted
        loops = kernel.loops(attend_slice.attend_slice, "for at in")
        spilled = sum(spills(loop.all) for loop in loops)
        fused = sum(
            "FFMA" in instruction and file == _DECISION
            for instruction, (file, _) in zip(kernel.instructions, kernel.places, strict=True)
        )
        print(kernel.name, kernel.shared_bytes, len(loops), spilled, fused)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
