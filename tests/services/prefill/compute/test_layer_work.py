"""A layer's dense history grows chunk by chunk into what one chunk would be."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from services.prefill.compute.layer_work import LayerHistory


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_every_append_returns_all_rows_so_far(sizes: list[int]) -> None:
    k, v = torch.randn(2, sum(sizes), 4), torch.randn(2, sum(sizes), 4)
    history, seen = LayerHistory(sum(sizes)), 0
    for size in sizes:
        part = slice(seen, seen + size)
        keys, values = history.append(k[:, part], v[:, part])
        seen += size
        assert torch.equal(keys, k[:, :seen])
        assert torch.equal(values, v[:, :seen])


def test_a_prompt_of_one_chunk_is_not_copied() -> None:
    k, v = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    keys, values = LayerHistory(5).append(k, v)
    assert keys is k
    assert values is v
