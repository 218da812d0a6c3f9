"""Ragged attention of one codec: pages of two sizes, few and many fed tokens, scored and not."""

from __future__ import annotations

import dataclasses
import math

import torch

from benchmarks.gpu.decode_attention import scratch_of
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.pool import Pool, fill
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.sizes import TINY, Sizes
from benchmarks.gpu.smoke.errors import error, figure, twice
from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.ragged_attention.kernel import attend_on_device
from kvstore.kernels.ragged_attention.row_ends import row_ends
from kvstore.row_codecs import RowCodec

_SHAPE = dataclasses.replace(TINY, layers=1, kv_heads=2, group=4, head_size=128, context=4096)
# `[B, H]`: heads empty, of one row, and around tiles and pages; the interpreter takes few rows
_ROWS = [[0, 1], [17, 300], [64, 2000]]
_FEW_ROWS = [[0, 1], [17, 70]]
# rows in a page, fed tokens, and whether the attention that rows receive is wanted; 20 tokens of 4
# heads are more queries than a tile
_FORMS = (
    (16, 1, True),
    (64, 1, True),
    (16, 1, False),
    (64, 1, False),
    (16, 3, True),
    (64, 3, True),
    (16, 3, False),
    (64, 3, False),
    (64, 20, False),
)
# as in the kernels' tests: results are rounded to 16 bits, weights split into two parts of 8
_ABSOLUTE, _RELATIVE = 4 * 2**-17, 1 / 128
_ATTENTION_ABSOLUTE, _ATTENTION_RELATIVE = 5e-6, 1e-5


def check(here: Setting) -> Figures:
    """Yield the error of each form."""
    codec = here.part.removeprefix("smoke-").replace("int8-int4", "int8/int4")
    on_gpu = here.device.type == "cuda"
    rows = torch.tensor(_ROWS if on_gpu else _FEW_ROWS, dtype=torch.int32, device=here.device)
    for page_rows, fed, scored in _FORMS:
        sizes = dataclasses.replace(_SHAPE, page_rows=page_rows, sequences=len(rows))
        pool = fill(rows[:, None], sizes, codec=RowCodec.parse(codec))
        _poison_unused(pool)
        batch = _fed(pool, sizes, fed)
        q = torch.randn(len(rows) * fed, sizes.query_heads, sizes.head_size, device=here.device)
        queries, scratch = q.to(sizes.dtype), scratch_of(pool.rows, scored=scored, fed=fed)

        def attend(
            queries: torch.Tensor = queries,
            batch: DeviceBatch = batch,
            scratch: DeviceScratch = scratch,
            sizes: Sizes = sizes,
        ) -> list[torch.Tensor]:
            return _attend(queries, batch, scratch, sizes)

        (out, attention), same = twice(here.part, attend)
        expected, shares = _expected(queries, batch, sizes, fed)
        worst = error(out, expected, _ABSOLUTE, _RELATIVE)
        if scored:
            of_rows = error(attention, shares, _ATTENTION_ABSOLUTE, _ATTENTION_RELATIVE)
            worst = max(worst, of_rows)
        name = f"{here.part}_{fed}_fed_{page_rows}_rows" + ("_scored" if scored else "")
        yield name.replace("-", "_"), figure(worst, same, "float64, bfloat16's tolerance")


def _attend(
    q: torch.Tensor, batch: DeviceBatch, scratch: DeviceScratch, sizes: Sizes
) -> list[torch.Tensor]:
    scratch.row_attention.fill_(math.nan)
    row_ends(batch.rows, batch.ends)
    out = attend_on_device(
        q,
        batch,
        0,
        scratch,
        kv_heads=sizes.kv_heads,
        scale=sizes.head_size**-0.5,
        sliding_window=None,
    )
    return [out, scratch.row_attention.clone()]


def _fed(pool: Pool, sizes: Sizes, fed: int) -> DeviceBatch:
    """Return the pool's batch with so many new tokens of every sequence."""
    batch = pool.batch
    shape = (2, 1, sizes.kv_heads, sizes.sequences * fed, sizes.head_size)
    keys, values = torch.randn(shape, device=pool.rows.device).to(sizes.dtype)
    first = batch.staging_slots * fed
    return dataclasses.replace(
        batch,
        new_keys=keys,
        new_values=values,
        flags=torch.zeros(sizes.sequences * fed, dtype=torch.uint8, device=keys.device),
        staging_slots=first,
        first_queries=first,
        counts=batch.counts * fed,
        most=fed,
        single=fed == 1,
    )


def _expected(
    q: torch.Tensor, batch: DeviceBatch, sizes: Sizes, fed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention in float64, and what each head's rows and fed tokens receive of it."""
    store, group = batch.row_pages, sizes.group
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    shares = []
    later = torch.ones(fed, fed, dtype=torch.bool, device=q.device).triu(1)
    for b in range(sizes.sequences):
        for h in range(sizes.kv_heads):
            count, own = int(batch.rows[b, 0, h]), slice(b * fed, (b + 1) * fed)
            slots = torch.arange(count, device=q.device)
            at = batch.pages[b, 0, h, slots // store.page_rows].long(), slots % store.page_rows
            keys = torch.cat((store.decoded_keys(at), batch.new_keys[0, h, own].float())).double()
            values = torch.cat((store.decoded_values(at), batch.new_values[0, h, own].float()))
            of_head = q[own, h * group : (h + 1) * group].double()
            logits = torch.einsum("mgd,nd->mgn", of_head, keys) / sizes.head_size**0.5
            logits[..., count:].masked_fill_(later[:, None], -math.inf)
            weights = logits.softmax(-1)
            out[own, h * group : (h + 1) * group] = weights @ values.double()
            shares.append(weights.sum((0, 1)) / group)
    return out, torch.cat(shares)


def _poison_unused(pool: Pool) -> None:
    """Fill the rows of the pool that no head holds with NaN."""
    store, pages = pool.batch.row_pages, pool.batch.pages
    rows_of_page = torch.zeros(len(store.keys.codes), dtype=torch.int64, device=pages.device)
    number = torch.arange(pages.shape[3], device=pages.device)
    held = (pool.rows[..., None] - number * store.page_rows).clamp(0, store.page_rows)
    used = pages >= 0
    rows_of_page[pages[used].long()] = held[used].long()
    slots = torch.arange(store.page_rows, device=pages.device)
    unused = slots >= rows_of_page[:, None]
    for part in (store.keys, store.values):
        for stored in (part.codes, part.scales):
            stored.view(torch.uint8)[unused] = 255
