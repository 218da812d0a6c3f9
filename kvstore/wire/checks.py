"""Checks of a layer before it is written, and after it was read."""

from __future__ import annotations

import torch

from kvstore.cache import LayerShape, RaggedLayer
from kvstore.errors import CorruptCache, FingerprintMismatch, InvalidParameter
from kvstore.row_codecs import KeyValueLayout
from kvstore.wire.index import ALL_CLASSES, LayerIndex
from kvstore.wire.sections import Section, section_tensor


def require_writable(
    layer: RaggedLayer, sections: tuple[Section, ...], layout: KeyValueLayout
) -> None:
    """Raise `InvalidParameter` where a tensor is not what the layer's own index announces."""
    if layer.head_offsets[0] != 0:
        raise InvalidParameter("layer.head_offsets", "must begin with 0")
    if layer.layout != (None if layout.unquantized else layout):
        raise InvalidParameter("layer.layout", f"is not that of the header, {layout.codec.name}")
    for section in sections:
        tensor = section_tensor(layer, section)
        if tuple(tensor.shape) != section.shape or tensor.dtype != section.dtype:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            wanted = f"{section.dtype} {section.shape}"
            raise InvalidParameter(f"layer.{section.name}", f"is {found}, wanted {wanted}")


def require_heads(index: LayerIndex, heads: int, tokens: int) -> None:
    """Raise `CorruptCache` unless the index speaks of `heads` heads of at most `tokens` rows."""
    if len(index.rows) != heads:
        raise CorruptCache(f"index has {len(index.rows)} heads, the layer {heads}")
    if max(index.rows, default=0) > tokens:
        raise CorruptCache(f"a head has {max(index.rows)} rows of {tokens} tokens")


def require_contents(layer: RaggedLayer, tokens: int) -> None:
    """Raise `CorruptCache` for positions, scores or flags that no cache can have."""
    if layer.rows:
        if int(layer.positions.min()) < 0 or int(layer.positions.max()) >= tokens:
            raise CorruptCache("a position lies outside the tokens seen")
        if not _ascends(layer.positions, layer.head_offsets):
            raise CorruptCache("the positions of a head do not ascend")
    if not bool(torch.isfinite(layer.scores).all()):
        raise CorruptCache("a score is not finite")
    if not bool(torch.isfinite(layer.log_weights).all()):
        raise CorruptCache("a log-weight is not finite")
    if bool((layer.flags > ALL_CLASSES).any()):
        raise CorruptCache("a flag has unknown bits")


def require_same_shapes(ours: tuple[LayerShape, ...], theirs: tuple[LayerShape, ...]) -> None:
    """Raise `FingerprintMismatch` naming the first part of the model's shape that differs."""
    if len(ours) != len(theirs):
        raise FingerprintMismatch("layers", str(len(ours)), str(len(theirs)))
    for layer, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        for field in ("kv_heads", "query_heads", "head_size", "sliding_window"):
            mine, other = getattr(our, field), getattr(their, field)
            if mine != other:
                raise FingerprintMismatch(f"layers[{layer}].{field}", str(mine), str(other))


def _ascends(positions: torch.Tensor, head_offsets: tuple[int, ...]) -> bool:
    rises = positions[1:] > positions[:-1]
    # between two heads the positions may fall
    boundaries = [row - 1 for row in head_offsets if 0 < row < positions.shape[0]]
    rises[boundaries] = True
    return bool(rises.all())
