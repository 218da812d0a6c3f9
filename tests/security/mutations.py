"""Requests and metadata that are changed at random from good ones."""

from __future__ import annotations

import random

from headwise.v1 import decode_pb2, prefill_pb2, store_pb2
from tests.security.http2_peer import Header

Call = tuple[str, bytes]

_DECODE = "/headwise.v1.DecodeService/"
_PREFILL = "/headwise.v1.PrefillService/"
_CACHE = "/headwise.v1.CacheService/"
_HANDLE = "0" * 64


def _chat(text: str) -> decode_pb2.ChatMessages:
    return decode_pb2.ChatMessages(messages=[decode_pb2.ChatMessage(role="user", content=text)])


def _decode_calls() -> list[Call]:
    generate = decode_pb2.GenerateRequest(
        chat=_chat("hello"), max_tokens=2, stop=["x"], stop_token_ids=[5], keep_session_seconds=1
    )
    generate.policy.name = "lookback"
    generate.policy.parameters.update({"floor": 4})
    generate.sampling.n = 2
    generate.codec.keys = "int8"
    session = decode_pb2.DescribeSessionRequest(session_id="ab" * 22)
    return [
        (_DECODE + "Generate", generate.SerializeToString()),
        (_DECODE + "Generate", decode_pb2.GenerateRequest(text="x y").SerializeToString()),
        (_DECODE + "DescribeSession", session.SerializeToString()),
        (_DECODE + "ForkSession", session.SerializeToString()),
        (_DECODE + "ListSessions", b""),
        *_cache_calls(),
    ]


def _prefill_calls() -> list[Call]:
    prefill = prefill_pb2.PrefillRequest(token_ids=[5, 6, 7], keep_for_seconds=1, cache_formats=[1])
    prefill.policy.name = "full"
    return [
        (_PREFILL + "Prefill", prefill.SerializeToString()),
        (_PREFILL + "Describe", b""),
        *_cache_calls(),
    ]


def _cache_calls() -> list[Call]:
    kept = store_pb2.KeepCacheRequest(chat=_chat("kept"), keep_for_seconds=1)
    fetch = store_pb2.FetchCacheRequest(handle=_HANDLE, cache_formats=[1])
    return [
        (_CACHE + "KeepCache", kept.SerializeToString()),
        (_CACHE + "FetchCache", fetch.SerializeToString()),
        (_CACHE + "ReleaseLease", fetch.SerializeToString()),
    ]


CALLS = {"decode": _decode_calls(), "prefill": _prefill_calls()}


def mutated(draw: random.Random, content: bytes) -> bytes:
    """Return the bytes with up to four changes: other, doubled, left out, cut or added ones."""
    data = bytearray(content)
    for _ in range(draw.randrange(5)):
        place, length = draw.randrange(len(data) + 1), draw.randrange(1, 9)
        match draw.randrange(5):
            case 0 if place < len(data):
                data[place] = draw.randrange(256)
            case 1:
                data[place:place] = data[place : place + length] * draw.choice((1, 1, 200))
            case 2:
                del data[place : place + length]
            case 3 if draw.random() < 0.2:
                del data[place:]
            case _:
                data[place:place] = draw.randbytes(length)
    return bytes(data)


def metadata(draw: random.Random, token: str) -> list[Header]:
    """Return metadata of one call: mostly with the token, and with values that are no text."""
    pairs: list[Header] = []
    if draw.random() < 0.8:
        pairs.append(("authorization", f"Bearer {token}"))
    for _ in range(draw.randrange(4)):
        name = draw.choice(("authorization", "x-headwise-tenant", "x-request-id", "traceparent"))
        value = draw.choice((f"Bearer {token}".encode(), b"acme", b"default", b"*", b"", b"a b"))
        # control characters would be refused by gRPC's own parser, before our code
        stray = bytes(draw.choice(range(0x21, 0x100)) for _ in range(draw.randrange(12)))
        pairs.append((name if draw.random() < 0.95 else "x-stray-bin", mixed(draw, value, stray)))
    return pairs


def mixed(draw: random.Random, value: bytes, stray: bytes) -> bytes:
    """Return a value, stray bytes, or both in one."""
    text = draw.choice((value, stray, value + stray))
    return text.replace(b"\x7f", b"~")
