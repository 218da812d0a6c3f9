"""Caches at rest in plain safetensors files that anyone can open without this project."""

from __future__ import annotations

import io
import os
import pathlib
import tempfile

import torch

from kvstore.cache import CompactCache, ModelFingerprint
from kvstore.errors import CorruptCache
from kvstore.tiers.safetensors_head import LENGTH_BYTES, head_bytes
from kvstore.tiers.stored_form import CacheReader, CacheWriter
from kvstore.wire.limits import DEFAULT_LIMITS, WireLimits
from kvstore.wire.sections import byte_view


def save_cache(cache: CompactCache, path: str | os.PathLike[str]) -> None:
    """Write a cache so that `path` holds all of it or what it held before, even after a crash.

    Readable by the owner only: rows can be turned back into the prompt. Raises `InvalidParameter`
    for a cache that `load_cache` would refuse.
    """
    target = pathlib.Path(path)
    writer = CacheWriter(cache)
    # made for the owner alone
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with io.FileIO(handle, "wb") as file:
            _write(writer, file)
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
    with io.FileIO(os.fspath(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        reader = CacheReader(_read_head(file, size), limits, expected_model)
        if file.tell() + reader.body_bytes != size:
            raise CorruptCache("the file is longer or shorter than its head says")
        body = torch.empty(reader.body_bytes, dtype=torch.uint8)
        if body.numel():
            _read_fully(file, byte_view(body))
        return reader.cache(body)


def _write(writer: CacheWriter, file: io.FileIO) -> None:
    """The body first, because only then the digest in the head is known."""
    file.seek(writer.head_bytes)
    for piece in writer.pieces():
        _write_fully(file, piece)
    file.seek(0)
    _write_fully(file, writer.head())


def _write_fully(file: io.FileIO, piece: bytes) -> None:
    written = file.write(piece)
    while written < len(piece):
        written += file.write(piece[written:])


def _read_head(file: io.FileIO, size: int) -> bytes:
    beginning = file.read(LENGTH_BYTES)
    length = head_bytes(beginning)
    # before memory is taken for it
    if length > size:
        raise CorruptCache("not a safetensors file: shorter than its head")
    rest = bytearray(length - LENGTH_BYTES)
    if rest:
        _read_fully(file, memoryview(rest))
    return beginning + rest


def _read_fully(file: io.FileIO, view: memoryview) -> None:
    while view:
        # a raw file reads at most 2 GiB at once
        got = file.readinto(view)
        if not got:
            raise CorruptCache("the file ended early")
        view = view[got:]


def _sync(path: str | pathlib.Path) -> None:
    """Make a file's contents, or a folder's names, survive a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
