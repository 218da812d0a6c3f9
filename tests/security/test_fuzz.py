"""Mutated requests and metadata: no INTERNAL, bounded log lines, and no secret in any log."""

from __future__ import annotations

import collections
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from services.demo.processes import Service
from services.runtime.process.logs import MAX_MESSAGE
from tests.conftest import Pair, running_pair
from tests.security.http2_peer import Http2Peer, http2_peer
from tests.security.mutations import CALLS, metadata, mutated
from tests.security.tokens import entry, write

pytestmark = pytest.mark.processes

_TOKEN, _OWN_TOKEN = "fuzz-token-61d0c7", "decode-token-0e44ab"
# a hundred thousand in a whole soak, and those of a minute in a cut
_INPUTS = 100_000 if float(os.environ.get("SOAK_SECONDS", "600")) >= 600 else 5_000
# calls at once; fewer than the streams of a connection
_AT_ONCE = 32
_INTERNAL = {grpc.StatusCode.INTERNAL.value[0], grpc.StatusCode.UNKNOWN.value[0]}
# a level, a request id and the name of a logger stand before a message
_LINE = MAX_MESSAGE + 200


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("fuzz")
    acme = entry(_TOKEN, "acme")
    decode_tokens = write(folder / "decode.toml", acme)
    prefill_tokens = write(folder / "prefill.toml", acme, entry(_OWN_TOKEN, "*"))
    own = write(folder / "own", _OWN_TOKEN)
    decode = ("--tokens", str(decode_tokens), "--prefill-token", str(own))
    decode += ("--log-level", "DEBUG", "--max-sequence-tokens", "64")
    prefill = ("--tokens", str(prefill_tokens), "--log-level", "DEBUG")
    with running_pair(str(tiny_model), prefill, decode) as pair:
        yield pair


def _fuzz(service: Service, inputs: int, seed: int) -> collections.Counter[int | None]:
    """Return how many calls ended with each status; None for those that gRPC itself reset."""
    draw, statuses = random.Random(seed), collections.Counter[int | None]()
    done = 0
    while done < inputs:
        # anew now and then, because a connection numbers its streams
        with http2_peer(service.port) as peer:
            for _ in range(min(50, 1 + (inputs - done) // _AT_ONCE)):
                statuses += _batch(peer, service.name, draw)
                done += _AT_ONCE
    return statuses


def _batch(peer: Http2Peer, name: str, draw: random.Random) -> collections.Counter[int | None]:
    sent = []
    for _ in range(_AT_ONCE):
        path, content = draw.choice(CALLS[name])
        request = mutated(draw, content)
        sent.append((peer.call(path, request, metadata(draw, _TOKEN)), path, request))
    statuses = collections.Counter[int | None]()
    for stream, path, request in sent:
        answer = peer.wait(stream, 60)
        assert answer.status not in _INTERNAL, (path, request, answer)
        statuses[answer.status] += 1
        peer.forget(stream)
    return statuses


def _check(pair: Pair, inputs: int) -> None:
    for seed, service in enumerate(pair):
        began = time.monotonic()
        statuses = _fuzz(service, inputs // 2, seed)
        seconds = time.monotonic() - began
        print(f"{service.name}: {statuses.total() / seconds:.0f} inputs a second, {statuses}")  # noqa: T201
        assert {0, 3, 16} <= statuses.keys(), statuses
    for service in pair:
        assert service.process.poll() is None
        log = service.log.read_text(errors="replace")
        assert _TOKEN not in log
        assert _OWN_TOKEN not in log
        assert "Traceback" not in log
        assert max(map(len, log.splitlines())) <= _LINE


def test_some_hundred_mutated_calls_end_with_a_typed_status(pair: Pair) -> None:
    _check(pair, 512)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_mutated_calls_end_with_a_typed_status(pair: Pair) -> None:
    _check(pair, _INPUTS)
