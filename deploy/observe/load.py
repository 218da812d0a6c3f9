"""Load of many kinds, so that every panel has something to show."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pydoc_data.topics import topics

from headwise import Client, HeadwiseError, Policy

_POLICIES = (
    Policy("coverage", {"recovery": 0.95}),
    Policy("fastgen", {"recovery": 0.95}),
    Policy("snapkv", {"budget": 0.3}),
    Policy("full"),
)
_CODECS = ("", "int8", "int8/int4")
_QUESTIONS = ("What is this about?", "Which names are in it?")
# in turn, so that no kind is missing from a short run; those that leave something to run out first
_KINDS = ("document", "kept", "plain", "refused", "left", "plain", "plain")
_SESSION_SECONDS = 2.0
_LEASE_SECONDS = 3.0


def drive(target: str, seconds: float, *, callers: int = 3, most_words: int = 200) -> int:
    """Ask for so long, several callers at once; returns how many answers were complete."""
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(callers) as threads:
        counts = [threads.submit(_caller, target, n, end, most_words) for n in range(callers)]
        return sum(count.result() for count in counts)


def _caller(target: str, number: int, end: float, most_words: int) -> int:
    answered, chance = 0, random.Random(number)
    first = number % len(_KINDS)
    kinds = itertools.cycle(_KINDS[first:] + _KINDS[:first])
    with Client(target) as client:
        while time.monotonic() < end:
            with contextlib.suppress(HeadwiseError):
                answered += _ask(client, next(kinds), chance, most_words)
    return answered


def _ask(client: Client, kind: str, chance: random.Random, most_words: int) -> bool:
    """One request: most are plain, some are kept, refused, left halfway or of a document."""
    words = chance.choice(list(topics.values())).split()[: chance.randint(20, most_words)]
    if kind == "document":
        return _ask_about(client, chance, " ".join(words))
    generation = client.generate(
        [] if kind == "refused" else " ".join(words),
        policy=chance.choice(_POLICIES),
        codec=chance.choice(_CODECS),
        max_tokens=chance.randint(4, 24),
        ignore_eos=True,
        session_ttl_seconds=_SESSION_SECONDS if kind == "kept" else 0,
    )
    if kind == "left":
        threading.Timer(chance.uniform(0.05, 0.5), generation.cancel).start()
    result = generation.result
    if result.session_id and chance.random() < 0.5:
        client.sessions.release(result.session_id)
    return True


def _ask_about(client: Client, chance: random.Random, document: str) -> bool:
    """Several questions about one stored cache; of its two leases one is left to run out."""
    codec = chance.choice(_CODECS)
    first, second = (
        client.caches.keep(document, ttl_seconds=_LEASE_SECONDS, policy="full", codec=codec)
        for _ in range(2)
    )
    for question in _QUESTIONS:
        client.generate(
            question,
            cache_handle=first.handle,
            max_tokens=chance.randint(4, 12),
            ignore_eos=True,
        ).text()
    client.caches.release(second.handle)
    return True
