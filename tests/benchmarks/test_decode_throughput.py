"""The peer that decode is measured against is transformers as it comes."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.decode_throughput import untouched_copy
from services.runtime.model.served_model import load_model
from services.runtime.model.small_batches import prepare_for_small_batches


def test_the_peer_shares_the_weights_and_none_of_the_preparation(tiny_model: Path) -> None:
    served = load_model(str(tiny_model))
    kinds = [type(module) for module in served.model.modules()]
    peer = untouched_copy(served.model)
    before = peer(torch.tensor([[5]])).logits
    prepare_for_small_batches(served.model)
    assert [type(module) for module in peer.modules()] == kinds
    assert [type(module) for module in served.model.modules()] != kinds
    shared = zip(peer.parameters(), served.model.parameters(), strict=True)
    assert all(theirs is ours for theirs, ours in shared)
    # not to the bit: weights that moved are aligned otherwise
    torch.testing.assert_close(peer(torch.tensor([[5]])).logits, before)
    assert peer.config._attn_implementation == "sdpa"
    assert served.model.config._attn_implementation == "headwise"
