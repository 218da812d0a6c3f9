"""Layers compiled around our attention compute what they did, and are as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from services.evaluation.attention_hooks import DenseAttention
from services.runtime.model.forward_pass import forward
from services.runtime.model.fused_layers import fused_layers
from services.runtime.model.served_model import ServedModel, load_model

# torch's compiler imports what torch itself calls outdated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def served(tiny_model: Path) -> Iterator[ServedModel]:
    torch._dynamo.reset()
    counters.clear()
    yield load_model(str(tiny_model))
    torch._dynamo.reset()


def logits(served: ServedModel) -> torch.Tensor:
    tokens = torch.arange(5, 12)[None]
    given = forward(served, tokens, torch.arange(7)[None], DenseAttention(), logits=True)
    assert given is not None
    return given


def test_fused_layers_compute_the_same_logits(served: ServedModel) -> None:
    expected = logits(served)
    layers = served.model.get_decoder().layers
    methods = [layer.forward for layer in layers]
    # the compiler behind it is torch's own; tracing is what our attention could break
    with fused_layers(served.model, backend="aot_eager"):
        found = logits(served)
        # one program before attention and one after, whatever the number of layers
        assert len(layers) > 1
        assert 2 <= counters["stats"]["unique_graphs"] <= 4
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert [layer.forward for layer in layers] == methods
    torch.testing.assert_close(logits(served), expected, atol=0, rtol=0)


def test_layers_are_restored_after_an_error(served: ServedModel) -> None:
    layers = served.model.get_decoder().layers
    methods = [layer.forward for layer in layers]
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        fused_layers(served.model, backend="aot_eager"),
    ):
        raise RuntimeError("in the middle")
    assert [layer.forward for layer in layers] == methods
