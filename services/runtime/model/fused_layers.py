"""A model's layers with their small operations fused, for steps whose shapes never change.

Between a layer's products and its attention a Hugging Face model launches some 30 small kernels
(norms, rotary positions, gates, sums), each of which takes longer to begin than to run. Compiled,
they are some seven.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from transformers import AttentionInterface, PreTrainedModel

from services.runtime.model import attention


@contextlib.contextmanager
def fused_layers(model: PreTrainedModel, backend: str = "inductor") -> Iterator[None]:
    """Within, every decoder layer runs compiled, in two parts around attention.

    All layers share what is compiled for one, which takes up to a minute for each shape. Raises
    `RuntimeError` where a layer cannot be compiled.
    """
    layers = list(model.get_decoder().layers)
    own = [vars(layer).get("forward") for layer in layers]
    # attention is ours, and no tensor program
    apart = torch.compiler.disable(attention.attend)  # type: ignore[no-untyped-call]
    AttentionInterface.register(attention.IMPLEMENTATION, apart)
    for layer in layers:
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=False)
    try:
        yield
    finally:
        attention.register()
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
