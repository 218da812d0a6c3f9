"""Decode before a prefill service that sends damaged, foreign or hostile streams.

Each is refused with its status, leaves nothing behind, and the next good stream is served.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from headwise import CorruptStream, HeadwiseError, Overloaded, Refused, Unavailable
from headwise.v1 import cache_pb2, prefill_pb2, store_pb2
from kvstore.policies import parse_policy
from kvstore.tiers.content_key import ContentKey
from kvstore.wire import Frame, FrameKind
from services.demo.processes import Service, running_service
from services.prefill.job import PrefillJob
from services.runtime.model.served_model import ServedModel, load_model
from services.runtime.serving.convert import describe_model
from tests.faults.asking import Asking, prompt_of
from tests.faults.fake_prefill import FakePrefill
from tests.faults.phases import clean_after, serving
from tests.faults.recording import message_of, record

pytestmark = pytest.mark.processes

PROMPT = prompt_of(12)
ANSWER_TOKENS = 5
STALL_SECONDS = 1.0

Messages = list[bytes]


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> ServedModel:
    return load_model(str(tiny_model), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def good(served: ServedModel) -> Messages:
    """The stream of all of the prompt but its last token, which decode feeds itself."""
    return record(served, PROMPT[:-1], "full")


@pytest.fixture(scope="module")
def answer(tiny_model: Path) -> list[int]:
    """The greedy answer of transformers' `generate`."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    options = {"max_new_tokens": ANSWER_TOKENS, "do_sample": False, "eos_token_id": None}
    tokens = model.generate(torch.tensor([PROMPT]), pad_token_id=0, **options)
    return tokens[0, len(PROMPT) :].tolist()


@pytest.fixture(scope="module")
def fake(served: ServedModel) -> Iterator[FakePrefill]:
    description = prefill_pb2.PrefillServiceDescribeResponse(model=describe_model(served))
    with FakePrefill(description.SerializeToString()) as fake:
        yield fake


@pytest.fixture(scope="module")
def decode(tiny_model: Path, fake: FakePrefill) -> Iterator[Service]:
    arguments = ("--model", str(tiny_model), "--prefill", fake.target)
    # a stored cache that stayed resident would count as a leftover
    options = ("--prefill-stall-seconds", str(STALL_SECONDS), "--max-resident-caches", "0")
    with running_service("decode", [*arguments, *options, "--threads", "1"]) as decode:
        yield decode


@pytest.fixture
def send(
    fake: FakePrefill, decode: Service, good: Messages, answer: list[int]
) -> Iterator[Callable[[Messages], HeadwiseError | None]]:
    """Sends a stream to decode and tells the error its caller got."""

    def sent(messages: Messages) -> HeadwiseError | None:
        fake.messages = messages
        asking = ask(decode)
        clean_after(decode, within_seconds=1.0)
        return asking.error

    assert sent(good) is None
    yield sent
    fake.messages, fake.hangs = good, False
    assert ask(decode).tokens == answer
    assert serving(decode)


def ask(decode: Service) -> Asking:
    with Asking(decode.target, PROMPT, max_tokens=ANSWER_TOKENS) as asking:
        asking.ended(20)
    return asking


def ask_stored(decode: Service, key: ContentKey) -> Asking:
    """Ask the last token of the prompt on a stored cache."""
    options = {"cache_handle": key.digest, "policy": "", "max_tokens": ANSWER_TOKENS}
    with Asking(decode.target, PROMPT[-1:], **options) as asking:
        asking.ended(20)
    return asking


def key_of(served: ServedModel, tokens: list[int], policy: str, namespace: str) -> ContentKey:
    job = PrefillJob(tuple(tokens), parse_policy(policy, {}))
    return ContentKey.of(job.header(served).fingerprint, namespace)


def description_of(key: ContentKey, tokens: int) -> bytes:
    cache = cache_pb2.StoredCache(
        key=key.digest, tokens=tokens, policy=cache_pb2.Policy(name="full")
    )
    return store_pb2.DescribeCacheResponse(cache=cache).SerializeToString()


Send = Callable[[Messages], HeadwiseError | None]


def test_a_stream_that_ends_early(send: Send, good: Messages) -> None:
    for size in range(len(good)):
        require_corrupt(send(good[:size]), size)


def test_messages_that_are_none(send: Send, good: Messages) -> None:
    for number in range(len(good)):
        for rubbish in (b"\xff\xff\xff", b"", b"\x7a\x03abc"):
            require_corrupt(send([*good[:number], rubbish, *good[number + 1 :]]), (number, rubbish))


def test_single_bytes_all_over_the_stream(send: Send, good: Messages) -> None:
    chance = random.Random(3)
    for number in [n for n in range(len(good)) if n != len(good) - 2] * 6:
        message = bytearray(good[number])
        # tags and lengths stand at the beginning and before the checksum at the end
        offset = chance.choice((*range(12), *range(-8, 0), chance.randrange(len(message))))
        message[offset] ^= chance.randrange(1, 256)
        damaged = [*good[:number], bytes(message), *good[number + 1 :]]
        require_corrupt(send(damaged), (number, offset))


def test_messages_twice_missing_and_in_another_order(send: Send, good: Messages) -> None:
    for number in [n for n in range(len(good)) if n != len(good) - 2]:
        require_corrupt(send([*good[: number + 1], *good[number:]]), ("twice", number))
        require_corrupt(send([*good[:number], *good[number + 1 :]]), ("missing", number))
    for number in range(len(good) - 3):
        first, second = good[number : number + 2]
        swapped = [*good[:number], second, first, *good[number + 2 :]]
        require_corrupt(send(swapped), ("swapped", number))


def test_a_cache_of_other_tokens(send: Send, served: ServedModel) -> None:
    for other in (PROMPT, PROMPT[:-2], [3, *PROMPT[1:-1]]):
        require_corrupt(send(record(served, other, "full")), len(other))


@pytest.mark.parametrize("other", ["document", "policy", "tenant"])
def test_a_stored_cache_that_is_another_one(
    fake: FakePrefill, decode: Service, served: ServedModel, answer: list[int], other: str
) -> None:
    """Prefill sends a sound cache of as many tokens, but not the one that the handle names."""
    document = PROMPT[:-1]
    asked = key_of(served, document, "full", "other" if other == "tenant" else "default")
    theirs = [*document[:-1], document[-1] ^ 1] if other == "document" else document
    policy = "h2o" if other == "policy" else "full"
    sent = key_of(served, theirs, policy, "default")
    assert sent != asked
    fake.messages = record(served, theirs, policy)[:-2] + record(served, theirs, policy)[-1:]
    for described in (asked, sent):
        fake.described = description_of(described, len(document))
        require_corrupt(ask_stored(decode, asked).error, (other, described))
        clean_after(decode, within_seconds=1.0)
    # what was asked for is taken, and answers as it should
    if other == "document":
        recorded = record(served, document, "full")
        fake.messages = [*recorded[:-2], recorded[-1]]
        fake.described = description_of(asked, len(document))
        assert ask_stored(decode, asked).tokens == answer


@pytest.mark.parametrize("field", ["weights_digest", "tokenizer_digest", "dtype"])
def test_a_cache_of_another_model(send: Send, good: Messages, field: str) -> None:
    error = send(with_header(good, ("fingerprint", "model", field), "bfloat16"))
    assert isinstance(error, Refused)
    assert (error.reason, error.field) == ("FINGERPRINT_MISMATCH", field)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("tokens",), 2**31, CorruptStream),
        (("tokens",), 2**31 - 1, Overloaded),
        # within the model's context, beyond what was asked
        (("tokens",), 16_000, CorruptStream),
        (("layers", 0, "kv_heads"), 65_536, CorruptStream),
        (("layers", 0, "head_size"), 65_536, Refused),
        (("format_version",), 9, Refused),
    ],
)
def test_hostile_headers(
    send: Send,
    decode: Service,
    good: Messages,
    path: tuple[str | int, ...],
    value: int,
    expected: type[HeadwiseError],
) -> None:
    before = psutil.Process(decode.process.pid).memory_info().rss
    assert isinstance(send(with_header(good, path, value)), expected)
    assert psutil.Process(decode.process.pid).memory_info().rss - before < 64 << 20


@pytest.mark.parametrize("rows", [2**31, 2**31 - 1, 12])
def test_hostile_indices(send: Send, decode: Service, good: Messages, rows: int) -> None:
    before = psutil.Process(decode.process.pid).memory_info().rss
    require_corrupt(send(altered(good, FrameKind.INDEX, ("rows", 0), rows)), rows)
    assert psutil.Process(decode.process.pid).memory_info().rss - before < 64 << 20


def test_too_many_layers(send: Send, good: Messages) -> None:
    layers = frame_of(good[0])["layers"]
    error = send(with_header(good, ("layers",), layers * 1000))
    assert isinstance(error, Overloaded)
    assert error.reason == "LIMIT_EXCEEDED"


@pytest.mark.parametrize("messages", [1, 4])
def test_a_stream_that_stalls(send: Send, fake: FakePrefill, good: Messages, messages: int) -> None:
    fake.hangs = True
    error = send(good[:messages])
    assert isinstance(error, Unavailable)
    assert error.reason == "PREFILL_STALLED"


def test_a_prefill_that_hangs_after_its_trailer_is_not_waited_for(
    send: Send, fake: FakePrefill, good: Messages
) -> None:
    fake.hangs = True
    assert send(good) is None


def require_corrupt(error: HeadwiseError | None, what: object) -> None:
    assert isinstance(error, CorruptStream), (what, error)
    assert error.reason == "CORRUPT_STREAM"


def frame_of(message: bytes) -> dict[str, list[object]]:
    """The JSON that a header's or an index's message holds."""
    payload: dict[str, list[object]] = json.loads(
        prefill_pb2.PrefillResponse.FromString(message).frame.payload
    )
    return payload


def with_header(messages: Messages, path: tuple[str | int, ...], value: object) -> Messages:
    return altered(messages, FrameKind.HEADER, path, value)


def altered(
    messages: Messages, kind: FrameKind, path: tuple[str | int, ...], value: object
) -> Messages:
    """The stream with a member of its first header or index replaced, its checksum right."""
    number = int(kind is FrameKind.INDEX)
    root = frame_of(messages[number])
    at: object = root
    for step in path[:-1]:
        at = at[step]  # type: ignore[index]
    at[path[-1]] = value  # type: ignore[index]
    frame = Frame.of(kind, json.dumps(root).encode())
    return [*messages[:number], message_of(frame), *messages[number + 1 :]]
