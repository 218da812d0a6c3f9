"""Values of a model's config.json without which nothing can be built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from services.runtime.model.model_errors import ModelRefused

_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_ROPE_TYPES_WITH_FACTOR = frozenset({"linear", "llama3", "yarn"})


def require_plausible(config: Mapping[str, Any]) -> None:
    """Raise `ModelRefused` naming the first value that cannot be.

    Looked at as the file has them, because transformers fails on such values with errors that do
    not name them. A value that is absent or null has its default.
    """
    for reason in (*_count_reasons(config), *_head_reasons(config), *_rope_reasons(config)):
        raise ModelRefused(f"config.json: {reason}; correct it, or download it again")


def _count_reasons(config: Mapping[str, Any]) -> Iterator[str]:
    for name in _COUNTS:
        value = config.get(name)
        if value is not None and not _is_count(value):
            yield f"{name} is {value!r}, and must be a whole number, at least 1"


def _head_reasons(config: Mapping[str, Any]) -> Iterator[str]:
    size, heads, hidden = (
        config.get(name) for name in ("head_dim", "num_attention_heads", "hidden_size")
    )
    if size is None and _is_count(heads) and _is_count(hidden):
        if hidden % heads:
            yield f"hidden_size {hidden} is no multiple of num_attention_heads {heads}"
            return
        size = hidden // heads
    if _is_count(size) and size % 2:
        yield f"heads of size {size} have no halves, which RoPE turns against each other"


def _rope_reasons(config: Mapping[str, Any]) -> Iterator[str]:
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        yield f"rope_parameters is {parameters!r}, and must hold names with a value each"
        return
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    for part in nested or [parameters]:
        kind, factor = part.get("rope_type", part.get("type")), part.get("factor")
        if kind in _ROPE_TYPES_WITH_FACTOR and not _is_factor(factor):
            yield f"RoPE type {kind!r} needs a factor, at least 1, not {factor!r}"


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1
