"""Caches in Redis or Valkey, single or Cluster.

    headwise:<namespace>:<digest>                 the manifest
    headwise:<namespace>:<digest>:<put id>:<n>    its chunks: 0 the head, from 1 the body
    headwise:<namespace>:index                    every put with its size, by time of expiry

Everything has a time to live. The manifest outlives its chunks a little, so that an expired cache
can be told from one the server has evicted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch

from kvstore.cache import CompactCache
from kvstore.errors import CorruptCache, FingerprintMismatch, LimitExceeded
from kvstore.tiers.base import (
    STORED,
    Expected,
    Hit,
    Lookup,
    Miss,
    MissReason,
    PutResult,
    PutStatus,
)
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.identity import identity_miss, miss_of
from kvstore.tiers.manifest import Manifest
from kvstore.tiers.redis_client import RedisClient
from kvstore.tiers.redis_faults import failed_get, failed_put, is_wrong_type, redis_errors
from kvstore.tiers.stored_form import CacheReader, CacheWriter
from kvstore.wire.limits import DEFAULT_LIMITS, WireLimits
from kvstore.wire.sections import byte_view

Item = TypeVar("Item")

_PREFIX = "headwise"
_NAMESPACES = f"{_PREFIX}:namespaces"
# chunks of a put whose writer died are gone after this
_UNFINISHED_SECONDS = 60
# for so long after its time an expired cache is known to have expired
_REMEMBERED_SECONDS = 60


@dataclasses.dataclass(frozen=True, slots=True)
class RedisOptions:
    """Options of the layout and the limits in Redis. Sizes in bytes.

    Tensors shorter than `chunk_bytes` are sent together; a chunk exceeds it by less than a piece.
    With `spread`, a Cluster may put each chunk on any node; without it all chunks of one cache
    share a slot, hence a node. `batch_chunks` chunks are in transfer at a time. Quotas are checked
    before a put, so that simultaneous writers may together exceed one.
    """

    chunk_bytes: int = 1 << 19
    batch_chunks: int = 16
    spread: bool = True
    longest_lifetime_seconds: float = 7 * 86_400
    quota_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # of every namespace that `quota_bytes` does not name; None for none
    each_bytes: int | None = None


class RedisTier:
    """A `Tier` over a client that `connect_redis` made."""

    def __init__(
        self,
        client: RedisClient,
        options: RedisOptions | None = None,
        name: str = "redis",
        limits: WireLimits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._options = options or RedisOptions()
        self._name = name
        self._limits = limits
        self._clock = clock
        self._errors = redis_errors()

    @property
    def name(self) -> str:
        return self._name

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        deadline: Deadline,
    ) -> PutResult:
        writer = CacheWriter(cache)
        longest = self._options.longest_lifetime_seconds
        lifetime = longest if lifetime_seconds is None else min(lifetime_seconds, longest)
        if lifetime <= 0:
            return STORED
        put_id, sizes = secrets.token_hex(8), list[int]()
        try:
            if self._over_quota(key, writer.head_bytes + writer.body_bytes):
                return PutResult(PutStatus.OVER_QUOTA)
            self._write_chunks(key, put_id, writer, sizes, deadline)
            expires_at = self._clock() + lifetime
            manifest = Manifest(put_id, expires_at, writer.head_bytes, tuple(sizes))
            # nothing may come up that the caller was told is not stored
            deadline.require()
            result = self._publish(key, manifest, writer.head(), lifetime)
        except ValueError as error:
            result = PutResult(PutStatus.UNAVAILABLE, f"the index is not ours: {error}")
        except self._errors as error:
            result = failed_put(error)
        if not result.stored:
            # what cannot be reached expires within `_UNFINISHED_SECONDS`
            self._unlink(self._chunk_name(key, put_id, n) for n in range(len(sizes) + 1))
        return result

    def get(self, key: ContentKey, expected: Expected, deadline: Deadline) -> Lookup:
        try:
            text = self._client.get(_manifest_name(key))
            if text is None:
                return Miss(MissReason.ABSENT)
            manifest = Manifest.parse(text)
            if manifest.expires_at <= self._clock():
                return Miss(MissReason.EXPIRED)
            return self._read(key, manifest, expected, deadline)
        except FingerprintMismatch as error:
            return miss_of(error)
        except (CorruptCache, LimitExceeded) as error:
            return Miss(MissReason.CORRUPT, str(error))
        except self._errors as error:
            return failed_get(error)

    def delete(self, key: ContentKey, deadline: Deadline) -> bool:
        try:
            text = self._client.getdel(_manifest_name(key))
            if text is not None:
                self._forget(key, Manifest.parse(text))
        except CorruptCache:
            return True
        except self._errors as error:
            # something else lies there, which is not ours to remove
            return is_wrong_type(error)
        return True

    def contains(self, key: ContentKey, deadline: Deadline) -> bool:
        try:
            text = self._client.get(_manifest_name(key))
            return text is not None and Manifest.parse(text).expires_at > self._clock()
        except CorruptCache:
            return False
        except self._errors:
            return False

    def bytes_in_use(self, namespace: str | None, deadline: Deadline) -> int | None:
        try:
            if namespace is not None:
                return self._indexed_bytes(namespace)
            members = self._client.smembers(_NAMESPACES)
            return sum(self._indexed_bytes(member.decode()) for member in members)
        except ValueError:
            return None
        except self._errors:
            return None

    def _write_chunks(
        self,
        key: ContentKey,
        put_id: str,
        writer: CacheWriter,
        sizes: list[int],
        deadline: Deadline,
    ) -> None:
        """The body's; appends their sizes."""
        chunks = _chunks(writer, self._options.chunk_bytes)
        for batch in _batches(chunks, self._options.batch_chunks):
            deadline.require()
            pipeline = self._client.pipeline(transaction=False)
            for chunk in batch:
                sizes.append(len(chunk))
                name = self._chunk_name(key, put_id, len(sizes))
                pipeline.set(name, chunk, ex=_UNFINISHED_SECONDS)
            pipeline.execute()

    def _publish(
        self, key: ContentKey, manifest: Manifest, head: bytes, lifetime: float
    ) -> PutResult:
        """Show the chunks, then let them live; what they replace goes.

        Chunks get their lifetime last, so that no fault leaves any that nothing names or counts.
        """
        names = self._chunk_names(key, manifest)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.set(names[0], head, ex=_UNFINISHED_SECONDS)
        pipeline.execute()
        name, kept = _manifest_name(key), int((lifetime + _REMEMBERED_SECONDS) * 1000)
        # the option `get` is what asks for Redis 6.2 or Valkey
        previous = self._client.set(name, manifest.encode(), px=kept, get=True)
        self._enter(key, manifest)
        try:
            lives = self._let_live(names, lifetime)
        except self._errors:
            self._withdraw(key, manifest)
            raise
        finally:
            self._forget_text(key, previous)
        if not lives:
            self._withdraw(key, manifest)
            return PutResult(PutStatus.FULL, "chunks were evicted before the last was written")
        return STORED

    def _let_live(self, names: Sequence[str], lifetime: float) -> bool:
        """Return whether every chunk is there and lives as long as the cache."""
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.pexpire(name, int(lifetime * 1000))
        return all(pipeline.execute())

    def _withdraw(self, key: ContentKey, manifest: Manifest) -> None:
        """Take back a cache that was shown, unless another writer has replaced it."""
        with contextlib.suppress(*self._errors):
            if self._client.get(_manifest_name(key)) == manifest.encode():
                self._unlink((_manifest_name(key),))
        self._forget(key, manifest)

    def _forget_text(self, key: ContentKey, text: object) -> None:
        """Forget the cache of a manifest that was replaced; garbage names no chunks."""
        if isinstance(text, bytes):
            with contextlib.suppress(CorruptCache):
                self._forget(key, Manifest.parse(text))

    def _unlink(self, names: Iterable[str]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.unlink(name)
        with contextlib.suppress(*self._errors):
            pipeline.execute()

    def _read(
        self, key: ContentKey, manifest: Manifest, expected: Expected, deadline: Deadline
    ) -> Lookup:
        names = self._chunk_names(key, manifest)
        head = self._client.get(names[0])
        if head is None:
            return self._evicted(key, manifest)
        reader = CacheReader(head, self._limits)
        miss = identity_miss(reader.fingerprint, key, expected)
        if miss is not None:
            return miss
        if reader.body_bytes != manifest.body_bytes:
            raise CorruptCache("manifest and head disagree about the size")
        body = torch.empty(reader.body_bytes, dtype=torch.uint8)
        if not self._read_body(names[1:], manifest.chunk_bytes, body, deadline):
            return self._evicted(key, manifest)
        return Hit(reader.cache(body), manifest.expires_at)

    def _read_body(
        self, names: Sequence[str], sizes: Sequence[int], body: torch.Tensor, deadline: Deadline
    ) -> bool:
        """Fill the body; False if a chunk is missing."""
        view = byte_view(body) if body.numel() else memoryview(b"")
        begin = 0
        for batch in _batches(zip(names, sizes, strict=True), self._options.batch_chunks):
            deadline.require()
            pipeline = self._client.pipeline(transaction=False)
            for name, _ in batch:
                pipeline.get(name)
            for chunk, (_, size) in zip(pipeline.execute(), batch, strict=True):
                if chunk is None:
                    return False
                if not isinstance(chunk, bytes) or len(chunk) != size:
                    raise CorruptCache("a chunk has another size than the manifest says")
                view[begin : begin + size] = chunk
                begin += size
        return True

    def _evicted(self, key: ContentKey, manifest: Manifest) -> Miss:
        """Chunks are gone before their time, or went just now."""
        if manifest.expires_at <= self._clock():
            return Miss(MissReason.EXPIRED)
        self._forget(key, manifest)
        return Miss(MissReason.EVICTED)

    def _enter(self, key: ContentKey, manifest: Manifest) -> None:
        """Add a cache to the index; if the index is on a dead node, the cache stays stored."""
        index = _index_name(key.namespace)
        longest = int(self._options.longest_lifetime_seconds) + 1
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zadd(index, {_index_member(key, manifest): manifest.expires_at})
        pipeline.expire(index, longest)
        pipeline.sadd(_NAMESPACES, key.namespace)
        pipeline.expire(_NAMESPACES, longest)
        with contextlib.suppress(*self._errors):
            pipeline.execute()

    def _forget(self, key: ContentKey, manifest: Manifest) -> None:
        """Give chunks back early; what cannot be reached goes with its time to live."""
        pipeline = self._client.pipeline(transaction=False)
        for name in self._chunk_names(key, manifest):
            pipeline.unlink(name)
        pipeline.zrem(_index_name(key.namespace), _index_member(key, manifest))
        with contextlib.suppress(*self._errors):
            pipeline.execute()

    def _over_quota(self, key: ContentKey, nbytes: int) -> bool:
        """Whether the put exceeds the quota; a cache that it replaces does not count."""
        quota = self._options.quota_bytes.get(key.namespace, self._options.each_bytes)
        if quota is None:
            return False
        return self._indexed_bytes(key.namespace, replaced=key.digest) + nbytes > quota

    def _indexed_bytes(self, namespace: str, replaced: str = "") -> int:
        """Return the bytes that the index counts, without the cache `replaced`.

        Raises `ValueError` if another program has written into the index.
        """
        index = _index_name(namespace)
        self._client.zremrangebyscore(index, "-inf", self._clock())
        members = [member.decode().split(":") for member in self._client.zrange(index, 0, -1)]
        return sum(int(member[-1]) for member in members if member[0] != replaced)

    def _chunk_names(self, key: ContentKey, manifest: Manifest) -> list[str]:
        """The head's first."""
        count = len(manifest.chunk_bytes) + 1
        return [self._chunk_name(key, manifest.put_id, number) for number in range(count)]

    def _chunk_name(self, key: ContentKey, put_id: str, number: int) -> str:
        if self._options.spread:
            return f"{_manifest_name(key)}:{put_id}:{number}"
        # a Cluster hashes only what stands in braces
        return f"{{{_manifest_name(key)}}}:{put_id}:{number}"


def _chunks(writer: CacheWriter, chunk_bytes: int) -> Iterator[bytes]:
    """The body in chunks of at least this size, but for the last."""
    chunk = b""
    for piece in writer.pieces():
        # most pieces are large enough, and are sent without another copy
        chunk = chunk + piece if chunk else piece
        if len(chunk) >= chunk_bytes:
            yield chunk
            chunk = b""
    if chunk:
        yield chunk


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size`, but for the last, each taken only when it is asked for."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _manifest_name(key: ContentKey) -> str:
    return f"{_PREFIX}:{key.namespace}:{key.digest}"


def _index_name(namespace: str) -> str:
    return f"{_PREFIX}:{namespace}:index"


def _index_member(key: ContentKey, manifest: Manifest) -> str:
    return f"{key.digest}:{manifest.put_id}:{manifest.nbytes}"
