"""Caches at rest in plain safetensors files that anyone can open without this project."""

from __future__ import annotations

import os
import pathlib
import tempfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kvstore.cache import CompactCache, ModelFingerprint
from kvstore.errors import CorruptCache, FingerprintMismatch, InvalidParameter
from kvstore.tiers.file_layout import DTYPE_NAMES, FileMetadata, OpenFile, tensor_name
from kvstore.wire.checks import require_contents, require_heads, require_writable
from kvstore.wire.header import MAX_WIDTH
from kvstore.wire.index import LayerIndex
from kvstore.wire.limits import DEFAULT_LIMITS, WireLimits
from kvstore.wire.sections import Section, layer_of, row_dtype, section_tensor, sections_of


def save_cache(cache: CompactCache, path: str | os.PathLike[str]) -> None:
    """Write a cache so that `path` holds all of it or what it held before, even after a crash.

    Readable by the owner only: rows can be turned back into the prompt. Raises `InvalidParameter`
    for a cache that `load_cache` would refuse.
    """
    target = pathlib.Path(path)
    metadata, tensors = _contents(cache)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=metadata.sealed(tensors.values()).as_mapping())
        # safetensors may have put a file of its own in this place
        os.chmod(temporary, 0o600)
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync(target.parent)


def load_cache(
    path: str | os.PathLike[str],
    limits: WireLimits = DEFAULT_LIMITS,
    expected_model: ModelFingerprint | None = None,
) -> CompactCache:
    """Read a cache into memory of its own.

    Raises `FileNotFoundError`, `CorruptCache` for a torn, changed or foreign file, `LimitExceeded`
    before anything is allocated, and `FingerprintMismatch` for another model's cache.
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return _read(file, limits, expected_model)
    except SafetensorError as error:
        raise CorruptCache(f"not a safetensors file: {error}") from error


def _contents(cache: CompactCache) -> tuple[FileMetadata, dict[str, torch.Tensor]]:
    """What to write: metadata still without digest, and every tensor by name, checked."""
    try:
        metadata = FileMetadata.describing(cache)
        identity, tokens = metadata.identity()
        dtype = row_dtype(identity.model.dtype)
        tensors: dict[str, torch.Tensor] = {}
        for number, (layer, index) in enumerate(zip(cache.layers, metadata.indexes(), strict=True)):
            sections = sections_of(index, layer.head_size, dtype)
            require_writable(layer, sections)
            require_heads(index, layer.kv_heads, tokens)
            require_contents(layer, tokens)
            tensors |= {tensor_name(number, s): section_tensor(layer, s) for s in sections}
    # ValueError: a number that JSON cannot spell
    except (CorruptCache, FingerprintMismatch, ValueError) as error:
        raise InvalidParameter("cache", str(error)) from error
    return metadata, _separate(tensors)


def _separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous on the CPU, and none in another's memory, which safetensors refuses."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        separate[name] = own
    return separate


def _read(
    file: OpenFile, limits: WireLimits, expected_model: ModelFingerprint | None
) -> CompactCache:
    metadata = FileMetadata.of(file.metadata())
    fingerprint, tokens = metadata.identity()
    indexes = metadata.indexes()
    limits.admit(tokens, len(indexes))
    if expected_model is not None:
        expected_model.require_same(fingerprint.model)
    dtype = row_dtype(fingerprint.model.dtype)
    layout = [_sections(file, i, index, dtype, tokens) for i, index in enumerate(indexes)]
    names = [tensor_name(i, s) for i, sections in enumerate(layout) for s in sections]
    if sorted(file.keys()) != sorted(names):
        raise CorruptCache("the file has other tensors than its index")
    limits.admit_bytes(sum(section.nbytes for sections in layout for section in sections))
    # copies, because the mapped file could be cut short under our feet
    tensors = {name: file.get_tensor(name).clone() for name in names}
    if metadata.sealed(tensors.values()) != metadata:
        raise CorruptCache("the digest of the file does not match")
    layers = tuple(
        layer_of(index, {s.kind: tensors[tensor_name(i, s)] for s in sections})
        for i, (index, sections) in enumerate(zip(indexes, layout, strict=True))
    )
    for layer in layers:
        require_contents(layer, tokens)
    return CompactCache(fingerprint, layers, tokens)


def _sections(
    file: OpenFile, layer: int, index: LayerIndex, dtype: torch.dtype, tokens: int
) -> tuple[Section, ...]:
    """The sections of a layer, once the file's tensors are seen to have their shape and dtype."""
    if not index.rows:
        raise CorruptCache(f"layer {layer} has no heads")
    require_heads(index, len(index.rows), tokens)
    shape = file.get_slice(f"layers.{layer}.keys").get_shape()
    if len(shape) != 2 or not 0 < shape[1] <= MAX_WIDTH:
        raise CorruptCache(f"keys of layer {layer} have shape {shape}")
    sections = sections_of(index, shape[1], dtype)
    for section in sections:
        stored = file.get_slice(tensor_name(layer, section))
        found = (tuple(stored.get_shape()), stored.get_dtype())
        if found != (section.shape, DTYPE_NAMES[section.dtype]):
            raise CorruptCache(f"{tensor_name(layer, section)} is not what the index says")
    return sections


def _sync(path: str | pathlib.Path) -> None:
    """Make a file's contents, or a folder's names, survive a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
