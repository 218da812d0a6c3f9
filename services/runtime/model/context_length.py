"""The longest sequence that a model's positions reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def context_tokens(config: PretrainedConfig) -> int:
    """Tokens of the model's context, with what YaRN adds to it.

    Models that were extended by YaRN keep the length before the extension in
    `max_position_embeddings`; others keep the extended one there. The larger of both is right in
    either case. Source: "YaRN: Efficient Context Window Extension", section 3, and Qwen's model
    cards, which name factor × original as the extended length.
    """
    configured = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "yarn":
        return configured
    original = rope.get("original_max_position_embeddings") or configured
    return max(configured, int(original * rope["factor"]))
