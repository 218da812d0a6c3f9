"""An attention implementation for transformers that calls a hook of Headwise in each layer."""

from __future__ import annotations

from typing import Protocol

import torch

from kvstore.attention_input import AttentionInput
from kvstore.cache import LayerShape
from services.runtime.model.model_errors import ModelRefused

# the name contains neither "flash" nor "sdpa" nor "flex_attention", because transformers branches
# on those. Its mask registry does not know the name and makes no mask: the hook applies causality
# and the sliding window
IMPLEMENTATION = "headwise"

# keywords of the served models that change nothing, because q and k already contain the position
_HARMLESS = frozenset({"position_ids", "cache_position"})
# flags that change nothing while they are off
_HARMLESS_WHEN_FALSE = frozenset(
    {"use_cache", "output_attentions", "output_hidden_states", "output_router_logits"}
)


class AttentionHook(Protocol):
    """Computes a model's attention and stores the keys and values that later calls need."""

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        """Return `[B, n, HQ, D]`, causal attention of these tokens to earlier ones and themselves.

        The input has the axis B. An exception aborts the forward pass.
        """
        ...


def register() -> None:
    """Make "headwise" an attention implementation of transformers; repeatable."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, attend)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    headwise: AttentionHook,
    headwise_shapes: tuple[LayerShape, ...],
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Call the hook from a layer of the model. The parameters are those of transformers.

    Raise `ModelRefused` on an argument that this attention would have to obey and cannot.
    """
    _require_harmless(others)
    if attention_mask is not None or is_causal is False or dropout:
        raise ModelRefused("it passes an attention mask, bidirectional attention or dropout")
    layer = module.layer_idx
    assert isinstance(layer, int)
    shape = LayerShape(key.shape[1], query.shape[1], value.shape[-1], sliding_window)
    assert shape == headwise_shapes[layer], (layer, shape, headwise_shapes[layer])
    assert key.shape == value.shape
    inputs = AttentionInput(layer, query, key, value, scaling, sliding_window)
    return headwise.attend(inputs), None


def _require_harmless(others: dict[str, object]) -> None:
    """Raise `ModelRefused` on any keyword that may ask for something this attention cannot do."""
    for name, value in others.items():
        known = name in _HARMLESS or (name in _HARMLESS_WHEN_FALSE and value is False)
        if value is not None and not known:
            raise ModelRefused(f"its attention passes the keyword {name!r}, unknown here")
