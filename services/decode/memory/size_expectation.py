"""Estimates of the pages that a sequence will need."""

from __future__ import annotations

from collections import OrderedDict

from headwise.v1 import cache_pb2
from kvstore.pool import PageCount, PagePool
from kvstore.row_codecs import RowCodec

# a cache larger than expected waits for room while it arrives, a smaller one gives the rest back
_MARGIN = 1.15
# weight of the newest observation
_NEWEST = 0.3
_POLICIES = 256


class SizeExpectation:
    """Learns what share of the dense pages each policy's caches take, and how long answers are."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._ratios: OrderedDict[bytes, float] = OrderedDict()
        self._answer_tokens = 0.0

    def pages(
        self,
        policy: cache_pb2.Policy,
        prompt_tokens: int,
        max_tokens: int,
        codec: RowCodec,
        *,
        longest_answer: bool = False,
    ) -> PageCount:
        """Estimate the pages of prompt and answer; those of a dense cache for a new policy.

        The answer is as long as earlier ones were, or as long as it may be with `longest_answer`.
        """
        usual = int(self._answer_tokens * _MARGIN) + 1
        answer = max_tokens if longest_answer else min(max_tokens, usual)
        dense = self._pool.bound(prompt_tokens + answer, codec)
        ratio = min(1.0, self._ratios.get(_key(policy), 1.0) * _MARGIN)
        return PageCount(int(dense.rows * ratio), int(dense.metadata * ratio))

    def saw_prompt(
        self, policy: cache_pb2.Policy, prompt_tokens: int, used: PageCount, codec: RowCodec
    ) -> None:
        """Learn from a cache that arrived and used these pages."""
        dense = self._pool.bound(prompt_tokens, codec)
        ratio = used.rows / dense.rows if dense.rows else 1.0
        key = _key(policy)
        before = self._ratios.pop(key, ratio)
        self._ratios[key] = before + _NEWEST * (ratio - before)
        while len(self._ratios) > _POLICIES:
            self._ratios.popitem(last=False)

    def saw_answer(self, tokens: int) -> None:
        """Learn from an answer of this many tokens."""
        before = self._answer_tokens or float(tokens)
        self._answer_tokens = before + _NEWEST * (tokens - before)


def _key(policy: cache_pb2.Policy) -> bytes:
    return policy.SerializeToString(deterministic=True)
