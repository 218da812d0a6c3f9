"""A model's layers with their small operations fused, for steps whose shapes never change.

Between a layer's products and its attention a Hugging Face model launches some 30 small kernels
(norms, rotary positions, gates, sums), each of which takes longer to launch than to run. After
compilation some seven remain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from transformers import AttentionInterface, PreTrainedModel

from services.runtime.model import attention


@contextlib.contextmanager
def fused_layers(model: PreTrainedModel, backend: str = "inductor") -> Iterator[None]:
    """Run every decoder layer compiled until the block ends, in two parts around attention.

    All layers share the code that is compiled for one, in up to a minute for each shape.
    Raises `RuntimeError` where a layer cannot be compiled.
    """
    layers = list(model.get_decoder().layers)
    original = [vars(layer).get("forward") for layer in layers]
    # attention runs kernels that torch.compile cannot trace
    apart = torch.compiler.disable(attention.attend)  # type: ignore[no-untyped-call]
    AttentionInterface.register(attention.IMPLEMENTATION, apart)
    for layer in layers:
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=False)
    try:
        yield
    finally:
        attention.register()
        for layer, forward in zip(layers, original, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
