"""A forward pass of a served model, with attention computed by a hook."""

from __future__ import annotations

import torch

from services.runtime.model.attention import AttentionHook
from services.runtime.model.served_model import ServedModel


def forward(
    served: ServedModel,
    token_ids: torch.Tensor,
    position_ids: torch.Tensor,
    hook: AttentionHook,
    logits: bool,
    at: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Run `[B, n]` tokens at their `[B, n]` positions, with attention by `hook`.

    Return the logits `[B, V]` after the last token, or None if `logits` is false, which computes
    none. With `at`, int64 `[E]`, return the logits `[E, V]` after these tokens of a single row.
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
