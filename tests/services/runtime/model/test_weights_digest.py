"""The digest is of what a checkpoint holds, and of nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from services.runtime.model.weights_digest import weights_digest


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = torch.nn.Linear(3, 5, bias=False)
        self.second = torch.nn.Linear(5, 3)
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("dropped", torch.ones(2), persistent=False)


def test_equal_weights_have_equal_digests() -> None:
    assert weights_digest(Small()) == weights_digest(Small())
    assert len(weights_digest(Small())) == 64


@pytest.mark.parametrize("name", ["first.weight", "second.bias", "kept"])
def test_the_last_bit_of_any_weight_counts(name: str) -> None:
    changed = Small()
    tensor = changed.state_dict()[name].view(-1)
    tensor[-1] = torch.nextafter(tensor[-1], torch.tensor(9.0))
    assert weights_digest(changed) != weights_digest(Small())


def test_a_buffer_that_no_checkpoint_holds_does_not_count() -> None:
    changed = Small()
    changed.dropped.fill_(7)
    assert weights_digest(changed) == weights_digest(Small())


def test_names_shapes_and_dtypes_count() -> None:
    renamed, reshaped, halved = Small(), Small(), Small().bfloat16()
    renamed.third = renamed.first
    del renamed.first
    reshaped.first.weight = torch.nn.Parameter(reshaped.first.weight.detach().view(3, 5))
    digests = {weights_digest(model) for model in (Small(), renamed, reshaped, halved)}
    assert len(digests) == 4


def test_memory_layout_does_not_count() -> None:
    turned = Small()
    turned.first.weight = torch.nn.Parameter(turned.first.weight.detach().t().contiguous().t())
    assert not turned.first.weight.is_contiguous()
    assert weights_digest(turned) == weights_digest(Small())


def test_tied_weights_count_once() -> None:
    tied = Small()
    tied.third = tied.first
    untied = copy.deepcopy(tied)
    untied.third = copy.deepcopy(tied.first)
    assert weights_digest(tied) == weights_digest(Small())
    assert weights_digest(untied) != weights_digest(tied)
