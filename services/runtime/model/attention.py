"""Attention of an unmodified Hugging Face model, handed to a hook of ours, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from kvstore.cache import LayerShape
from services.runtime.model.model_errors import ModelRefused

if TYPE_CHECKING:
    from services.runtime.model.served_model import ServedModel

# no "flash", "sdpa" or "flex_attention" within: transformers branches on those names.
# a name that its mask registry does not know gets no mask, so causality and window are the hook's
IMPLEMENTATION = "headwise"

# what the served models pass that changes nothing, because the position is already in q and k
_HARMLESS = frozenset({"position_ids", "cache_position"})
# flags that change nothing while they are off
_HARMLESS_WHEN_FALSE = frozenset(
    {"use_cache", "output_attentions", "output_hidden_states", "output_router_logits"}
)


class AttentionHook(Protocol):
    """What computes attention, and keeps whatever keys and values it will need later."""

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """Causal attention of this call's tokens over all earlier ones and themselves.

        `q [B, H·G, n, D]`, `k`, `v [B, H, n, D]`, q and k after RoPE, strided views;
        returns `[B, n, H·G, D]`. Raising aborts the forward pass.
        """
        ...


def register() -> None:
    """Make "headwise" an attention implementation of transformers; again is harmless."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, attend)


def forward(
    served: ServedModel,
    token_ids: torch.Tensor,
    position_ids: torch.Tensor,
    hook: AttentionHook,
    logits: bool,
    at: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Run `[B, n]` tokens at their `[B, n]` positions, attention by `hook`.

    Returns the logits `[B, V]` after the last token, or None without computing any. With `at`,
    int64 `[E]`, those `[E, V]` after these tokens of a single row.
    """
    arguments = {
        "input_ids": token_ids,
        "position_ids": position_ids,
        "use_cache": False,
        "headwise": hook,
        "headwise_shapes": served.shapes,
    }
    with torch.inference_mode():
        if not logits:
            served.model.get_decoder()(**arguments)
            return None
        keep = 1 if at is None else at
        output: torch.Tensor = served.model(**arguments, logits_to_keep=keep).logits
        return output[:, -1] if at is None else output[0]


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
    """What a layer calls, by transformers' conventions; raises `ModelRefused` on others."""
    _require_harmless(others)
    if attention_mask is not None or is_causal is False or dropout:
        raise ModelRefused("it passes an attention mask, bidirectional attention or dropout")
    layer = module.layer_idx
    assert isinstance(layer, int)
    shape = LayerShape(key.shape[1], query.shape[1], value.shape[-1], sliding_window)
    assert shape == headwise_shapes[layer], (layer, shape, headwise_shapes[layer])
    assert key.shape == value.shape
    return headwise.attend(layer, query, key, value, scaling, sliding_window), None


def _require_harmless(others: dict[str, object]) -> None:
    """Raise `ModelRefused` on any keyword that may mean something we do not do."""
    for name, value in others.items():
        known = name in _HARMLESS or (name in _HARMLESS_WHEN_FALSE and value is False)
        if value is not None and not known:
            raise ModelRefused(f"its attention passes the keyword {name!r}, unknown here")
