"""Rows in a pool of more bytes and elements than 32 bits can count are found as any others."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kvstore.kernels.device_batch import DeviceBatch
from kvstore.kernels.paged_batch import PagedBatch
from kvstore.kernels.row_pages import RowPages
from kvstore.row_codecs import RowCodec
from tests.kvstore.kernels.ragged_attention.batches import a_batch, attend

pytest.importorskip("triton")

from kvstore.kernels.ragged_attention import kernel
from tests.kvstore.kernels.retain.device_pool import DevicePool, NewRows
from tests.kvstore.kernels.retain.test_kernel import H2O

CODECS = ("model", "int8/int4")


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by byte, of so many; and the interpreter need not copy them back onto themselves."""
    if not torch.cuda.is_available():
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)


def further(row_pages: RowPages) -> tuple[RowPages, int]:
    """The same rows at the far end of a large arena, and so many pages further.

    What lies before is never touched, and takes no memory where it is only promised.
    """
    page_layout = row_pages.page_layout
    pages = 2**32 // page_layout.page_bytes + 1
    arena = row_pages.arena.new_empty(pages * page_layout.page_bytes + row_pages.arena.numel())
    arena[pages * page_layout.page_bytes :] = row_pages.arena
    return RowPages.of(arena, page_layout), pages


@pytest.mark.parametrize("new_tokens", [1, 2])
@pytest.mark.parametrize("codec", CODECS)
def test_attention(
    codec: str, new_tokens: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PagedBatch, "on_triton", True)
    batch = a_batch(new_tokens, torch.bfloat16, codec, rows=((0, 1, 20, 70),))
    expected = attend(batch, device=device)
    at_once = kernel.attend_on_device

    def attend_far_away(q: torch.Tensor, here: DeviceBatch, *given: int, **named: int) -> object:
        row_pages, pages = further(here.row_pages)
        there = dataclasses.replace(here, row_pages=row_pages, pages=here.pages + pages)
        return at_once(q, there, *given, **named)

    monkeypatch.setattr(kernel, "attend_on_device", attend_far_away)
    for one, other in zip(attend(batch, device=device), expected, strict=True):
        assert torch.equal(one.out, other.out)
        for found, wanted in zip(one.row_attention, other.row_attention, strict=True):
            assert (found is None) == (wanted is None)
            assert found is None or torch.equal(found, wanted)


@pytest.mark.parametrize("codec", CODECS)
def test_retention(codec: str, device: torch.device) -> None:
    place, seed = (0, 0, 1), 5
    held = []
    for far in (False, True):
        torch.manual_seed(seed)
        rules = [[[H2O] * 2]]
        pool = DevicePool([[[1, 60]]], rules, [300], device, torch.bfloat16, RowCodec.parse(codec))
        new = NewRows.random(pool, 3)
        if far:
            pool.row_pages, pages = further(pool.row_pages)
            pool.pages += pages
            pool.free_pages.ring.add_(pages)
        pool.step(new)
        held.append(pool.held(place))
    assert held[0] == held[1]
