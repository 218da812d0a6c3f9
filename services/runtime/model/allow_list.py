"""The models that are served: those checked against the attention of transformers.

Many other models run through the attention interface but give wrong answers without an error, so
every unchecked model is refused at start-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kvstore.cache import LayerShape
from services.runtime.model.model_errors import ModelRefused

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# model types by the place of a layer's window in their configuration
_WINDOW_NOWHERE = frozenset({"llama"})
_WINDOW_EVERYWHERE = frozenset({"mistral", "mixtral", "phi3", "qwen3_moe"})
_WINDOW_BY_LAYER_TYPE = frozenset({"qwen2", "qwen3", "gemma3_text", "smollm3"})
SERVED_MODEL_TYPES = _WINDOW_NOWHERE | _WINDOW_EVERYWHERE | _WINDOW_BY_LAYER_TYPE

SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
# other types recompute frequencies from the batch's largest position, so that sequences interact
SERVED_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})

# well-known types, and the reason why each is refused
_KNOWN_REASONS = {
    "deepseek_v2": "its keys and values differ in size",
    "deepseek_v3": "its keys and values differ in size",
    "gemma2": "it caps attention logits (softcapping)",
    "gemma3": "it takes images; serve its text model (gemma3_text)",
    "gpt2": "its attention has learned absolute positions and is not checked here",
    "gpt_oss": "its heads have attention sinks",
    "llama4": "its chunked attention lives in the mask",
    "llama4_text": "its chunked attention lives in the mask",
    "qwen3_next": "it has linear-attention layers, which keep no keys",
}


def require_served(config: PretrainedConfig) -> None:
    """Raise `ModelRefused` naming the first feature that cannot be served faithfully."""
    for reason in _reasons(config):
        raise ModelRefused(reason)


def layer_shapes(config: PretrainedConfig) -> tuple[LayerShape, ...]:
    """The shape of each of the L attention layers; `ModelRefused` as in `require_served`."""
    require_served(config)
    kv_heads = config.num_key_value_heads or config.num_attention_heads
    return tuple(
        LayerShape(kv_heads, config.num_attention_heads, _head_size(config), _window(config, layer))
        for layer in range(config.num_hidden_layers)
    )


def _reasons(config: PretrainedConfig) -> Iterator[str]:
    kind = config.model_type
    # checked before the type, because the message is more specific
    if getattr(config, "is_encoder_decoder", False):
        yield f"{kind} is an encoder-decoder"
    if kind not in SERVED_MODEL_TYPES:
        why = _KNOWN_REASONS.get(kind, "it is not checked here")
        yield f"{kind}: {why}; served types: {', '.join(sorted(SERVED_MODEL_TYPES))}"
    for rope_type in sorted(_rope_types(config) - SERVED_ROPE_TYPES):
        yield (
            f"RoPE type {rope_type!r} depends on the longest sequence of a batch or is not checked;"
            f" served: {', '.join(sorted(SERVED_ROPE_TYPES))}"
        )
    for layer_type in sorted(set(_layer_types(config)) - SERVED_LAYER_TYPES):
        yield f"layer type {layer_type!r}; served: {', '.join(sorted(SERVED_LAYER_TYPES))}"
    yield from _attention_reasons(config)


def _attention_reasons(config: PretrainedConfig) -> Iterator[str]:
    if getattr(config, "attn_logit_softcapping", None) is not None:
        yield "attn_logit_softcapping is set, and attention here does not cap its logits"
    if (getattr(config, "v_head_dim", None) or _head_size(config)) != _head_size(config):
        yield "its keys and values differ in size (v_head_dim)"
    if getattr(config, "use_bidirectional_attention", False) or _not_causal(config):
        yield "its attention is bidirectional, a cache needs a causal one"
    if config.num_attention_heads % (config.num_key_value_heads or config.num_attention_heads):
        yield "its query heads are not a multiple of its KV heads"


def _not_causal(config: PretrainedConfig) -> bool:
    return getattr(config, "is_causal", None) is False


def _head_size(config: PretrainedConfig) -> int:
    explicit = getattr(config, "head_dim", None)
    return int(explicit or config.hidden_size // config.num_attention_heads)


def _rope_types(config: PretrainedConfig) -> set[str]:
    parts = _rope_parameters(config) or [{}]
    return {str(part.get("rope_type", part.get("type", "default"))) for part in parts}


def _rope_parameters(config: PretrainedConfig) -> list[Mapping[str, Any]]:
    """The parameters of RoPE, which are flat, or nested by layer type (gemma3)."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(parameters, Mapping):
        return []
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or [parameters]


def _layer_types(config: PretrainedConfig) -> tuple[str, ...]:
    return tuple(getattr(config, "layer_types", None) or ())


def _window(config: PretrainedConfig, layer: int) -> int | None:
    if config.model_type in _WINDOW_NOWHERE:
        return None
    if config.model_type in _WINDOW_BY_LAYER_TYPE:
        if _layer_types(config)[layer] != "sliding_attention":
            return None
        # gemma3 has no such setting
        if not getattr(config, "use_sliding_window", True):
            return None
    window: int | None = config.sliding_window
    return window
