"""Assembles one arriving cache from the messages of its stream."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from headwise.v1 import cache_pb2, prefill_pb2
from kvstore.cache import RaggedLayer, digest_tokens
from kvstore.errors import CorruptCache
from kvstore.pool import SequencePages
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.identity import require_key
from kvstore.wire import CacheDecoder, CacheHeader, FrameKind
from services.decode.report import Head, TransferReport, heads_of
from services.runtime.serving.convert import recorded_policy
from services.runtime.serving.frames import frame_from_proto, parse_prefill_response
from services.runtime.serving.wire_watch import WireWatch


@dataclasses.dataclass(frozen=True, slots=True)
class ExpectedCache:
    """The tokens that the header of an arriving cache must state, and its digest or its key.

    Decode knows the tokens of a new prompt, and of a stored cache their number and the content key.
    """

    tokens: int
    token_digest: str | None = None
    key: ContentKey | None = None

    @classmethod
    def of(cls, token_ids: Sequence[int]) -> ExpectedCache:
        return cls(len(token_ids), digest_tokens(token_ids))

    def require(self, header: CacheHeader) -> None:
        """Raise `CorruptCache` unless the header is that of the cache that was asked for."""
        digest = header.fingerprint.token_digest
        if header.tokens != self.tokens or self.token_digest not in (None, digest):
            raise CorruptCache("the cache is one of other tokens than were asked for")
        if self.key is not None:
            require_key(header.fingerprint, self.key)


class Reception:
    """Checks the messages of a cache stream and fills `pages` layer by layer.

    The pages may be used once `complete` is true, which the stream's trailer decides.
    """

    def __init__(
        self, decoder: CacheDecoder, expected: ExpectedCache, pages: SequencePages
    ) -> None:
        self._decoder = decoder
        self._expected = expected
        self._pages = pages
        self._layers = 0
        self._heads: list[Head] = []
        self._wire_bytes = 0
        self._began: float | None = None
        self._watch = WireWatch("received")
        self._stages = prefill_pb2.PrefillReport()

    @property
    def complete(self) -> bool:
        return self._decoder.complete

    def take(self, message: bytes) -> RaggedLayer | None:
        """Return the layer that this message completes; `load` it before the next message.

        Raises `CorruptCache`, `LimitExceeded` or `FingerprintMismatch`.
        """
        response = parse_prefill_response(message)
        match response.WhichOneof("part"):
            case "frame":
                self._count(len(message))
                return self._take_frame(response.frame)
            case "report":
                self._stages = response.report
            case "progress" | "kept":
                pass
            case _:
                raise CorruptCache("a message of the cache stream holds nothing known")
        return None

    def load(self, layer: RaggedLayer) -> None:
        """Copy the next layer into the pages, which must be reserved."""
        self._pages.load(self._layers, layer)
        self._heads += heads_of(self._layers, layer)
        self._layers += 1

    def finish(self) -> TransferReport:
        """Return the report of the transfer. Raises `CorruptCache` without a trailer."""
        self._decoder.finish()
        seconds = time.perf_counter() - (self._began or 0.0)
        policy = recorded_policy(self._decoder.header.fingerprint)
        return TransferReport(policy, tuple(self._heads), self._wire_bytes, seconds, self._stages)

    def _count(self, message_bytes: int) -> None:
        self._began = self._began or time.perf_counter()
        self._wire_bytes += message_bytes
        self._watch.begin()
        self._watch.moved(message_bytes)

    def _take_frame(self, message: cache_pb2.CacheFrame) -> RaggedLayer | None:
        frame = frame_from_proto(message)
        layer = self._decoder.feed(frame)
        if frame.kind is FrameKind.HEADER:
            # checked before any layer: the header's token count bounds the size of the layers
            self._expected.require(self._decoder.header)
        return layer
