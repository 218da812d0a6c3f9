"""The host waits at most once a layer for a CUDA device that computes a prompt."""

from __future__ import annotations

import threading
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from kvstore.cache import RaggedLayer
from kvstore.policies import parse_policy
from kvstore.row_codecs import RowCodec
from services.prefill.compute.prefiller import Prefiller, PrefillStopped
from services.prefill.compute.shipping import Shipping
from services.runtime.model.served_model import ServedModel, load_model

pytest.importorskip("triton")

from tests.pretended_cuda.tensors import Waits

pytestmark = [
    pytest.mark.parametrize("any_device", ["gpu"], indirect=True),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a real one does not count"),
]

_SMALL = {"recovery": 0.7, "floor_rows": 8, "windows": [8, 16, 32]}
# waits beyond one a layer: policies over all layers count the winners together
_POLICIES: dict[str, tuple[dict[str, object], int]] = {
    "full": ({}, 0),
    "coverage": (_SMALL, 0),
    "snapkv": ({"floor_rows": 8}, 0),
    "lookback": ({"floor_rows": 8, "recent": 16, "distance": 8}, 0),
    "vlcache": ({"floor_rows": 8}, 1),
}


@pytest.fixture(scope="module")
def served(tiny_model: Path, any_device: str) -> ServedModel:
    return load_model(str(tiny_model), device=any_device)


def prefill(
    served: ServedModel,
    policy: str,
    parameters: dict[str, object],
    codec: RowCodec,
    shipping: Shipping,
    stop: threading.Event,
) -> None:
    Prefiller(
        served,
        served.tokenizer.encode(topics["compound"])[:150],
        parse_policy(policy, parameters),
        chunk_tokens=64,
        emit=lambda _, layer: shipping.add(layer),
        progress=lambda _: None,
        stop=stop,
        codec=codec,
    ).run()


@pytest.mark.parametrize("codec", ["model", "int4"])
@pytest.mark.parametrize("policy", _POLICIES)
def test_the_computing_thread_waits_at_most_once_a_layer(
    served: ServedModel, policy: str, codec: str
) -> None:
    parameters, more = _POLICIES[policy]
    layers: list[RaggedLayer] = []
    here, waits = threading.get_ident(), 0
    # the second time what stays on the device is there
    for _ in range(2):
        before = Waits.by_thread[here]
        with Shipping(layers.append) as shipping:
            prefill(served, policy, parameters, RowCodec.parse(codec), shipping, threading.Event())
        waits = Waits.by_thread[here] - before
    assert waits <= len(served.shapes) + more
    first, second = layers[: len(served.shapes)], layers[len(served.shapes) :]
    for one, other in zip(first, second, strict=True):
        # in host memory, and no copy was read before it was there
        assert not one.keys.is_cuda
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.positions, other.positions)
        assert one.positions.min() >= 0


def test_an_error_of_a_receiver_ends_the_computation(served: ServedModel) -> None:
    def refuses(_: RaggedLayer) -> None:
        raise PrefillStopped

    with pytest.raises(PrefillStopped), Shipping(refuses) as shipping:
        prefill(served, "full", {}, RowCodec(), shipping, threading.Event())


def test_what_fails_is_not_hidden_by_layers_underway(served: ServedModel) -> None:
    emitted: list[RaggedLayer] = []

    def fails_at_the_last(layer: RaggedLayer) -> None:
        shipping.add(layer)
        raise ValueError("a layer")

    with pytest.raises(ValueError, match="a layer"), Shipping(emitted.append) as shipping:
        Prefiller(
            served,
            range(3, 30),
            parse_policy("full", {}),
            chunk_tokens=64,
            emit=lambda _, layer: fails_at_the_last(layer),
            progress=lambda _: None,
            stop=threading.Event(),
        ).run()
    assert len(emitted) == 1
