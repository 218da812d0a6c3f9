"""A row codec asked for is what travels, what is held, and what is told; others are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise import Client, InvalidRequest
from headwise.results import Result
from headwise.v1 import cache_pb2, decode_pb2
from tests.conftest import Pair, running_pair

pytestmark = pytest.mark.processes

_PROMPT = "The with statement is used to wrap the execution of a block. " * 20


@pytest.fixture(scope="module")
def pair(tiny_model: Path) -> Iterator[Pair]:
    """Prefill allows every codec, decode all but fp8."""
    with running_pair(
        str(tiny_model), decode_arguments=("--codecs", "int8,int4", "--page-rows", "4")
    ) as pair:
        yield pair


def _result(client: Client, codec: str, **options: object) -> Result:
    generation = client.generate(
        _PROMPT, policy="full", codec=codec, max_tokens=6, ignore_eos=True, **options
    )
    return generation.result


@pytest.mark.parametrize(("codec", "row_bytes"), [("int8", 2 * 18), ("int8/int4", 18 + 12)])
def test_coded_rows_are_counted_as_they_are(pair: Pair, codec: str, row_bytes: int) -> None:
    with Client(pair[1].target) as client:
        plain, coded = _result(client, ""), _result(client, codec)
    assert (plain.codec, coded.codec) == ("model", codec)
    memory = coded.prompt_memory
    assert memory.dense_bytes == plain.prompt_memory.dense_bytes
    assert memory.rows_kept == plain.prompt_memory.rows_kept
    # D is 16 in float32; whole pages, and on the wire positions and frames, come on top
    payload = memory.rows_kept * row_bytes
    assert payload < memory.resident_bytes < payload * 1.35
    assert memory.wire_bytes < plain.prompt_memory.wire_bytes - memory.rows_kept * (
        128 - row_bytes - 1
    )


def test_int8_begins_with_the_models_first_token(pair: Pair) -> None:
    with Client(pair[1].target) as client:
        texts = [
            client.generate(_PROMPT, policy="full", codec=codec, max_tokens=1).text()
            for codec in ("", "int8")
        ]
    assert texts[0] == texts[1]


def test_a_turn_goes_on_with_the_codec_of_its_session(pair: Pair) -> None:
    with Client(pair[1].target) as client:
        first = _result(client, "int4", session_ttl_seconds=60)
        turn = client.generate("And?", session_id=first.session_id, max_tokens=3).result
        assert turn.codec == "int4"
        with pytest.raises(InvalidRequest) as refusal:
            _ = client.generate("And?", session_id=first.session_id, codec="int8").result
    assert refusal.value.reason == "CODEC_OF_SESSION"


@pytest.mark.parametrize("codec", ["fp8", "int8/fp8"])
def test_a_codec_that_is_not_allowed_is_refused_by_name(pair: Pair, codec: str) -> None:
    with Client(pair[1].target) as client, pytest.raises(InvalidRequest) as refusal:
        _result(client, codec)
    assert (refusal.value.reason, refusal.value.metadata["field"]) == ("CODEC_NOT_ALLOWED", "codec")


def test_an_unknown_codec_is_refused_by_field(pair: Pair) -> None:
    with Client(pair[1].target) as client, pytest.raises(InvalidRequest) as refusal:
        _result(client, "int2")
    assert refusal.value.metadata["field"] == "codec"


def test_limits_are_described(pair: Pair) -> None:
    with Client(pair[1].target) as client:
        assert list(client.describe().limits.codecs) == ["model", "int8", "int4"]


def test_a_request_says_keys_and_values() -> None:
    from headwise.requests import generate_request

    request: decode_pb2.GenerateRequest = generate_request("text", codec="int8/int4")
    assert request.codec == cache_pb2.RowCodec(keys="int8", values="int4")
    assert not generate_request("text").HasField("codec")


def test_a_kept_cache_keeps_its_codec(pair: Pair) -> None:
    """Store, fetch and decode give the same answer as the complete prompt, in less memory."""
    _, decode = pair
    document, question = [(7 * i * i + 3 * i) % 500 + 2 for i in range(200)], [8, 61, 3]

    def ask(client: Client, prompt: list[int], **options: str) -> tuple[list[int], Result]:
        generation = client.generate(prompt, max_tokens=12, ignore_eos=True, **options)
        return [token for delta in generation for token in delta.token_ids], generation.result

    with Client(decode.target) as client:
        stored = {
            codec: client.caches.keep(document, ttl_seconds=60, policy="full", codec=codec)
            for codec in ("", "int8")
        }
        plain, coded = stored[""], stored["int8"]
        assert (plain.codec, coded.codec) == ("model", "int8")
        assert plain.key != coded.key
        assert coded.cache_bytes < plain.cache_bytes / 2
        assert client.caches.describe(coded.key).codec == "int8"
        direct, _ = ask(client, document + question, policy="full", codec="int8")
        answer, result = ask(client, question, cache_handle=coded.handle)
        assert answer == direct
        _, dense = ask(client, question, cache_handle=plain.handle)
        assert (result.codec, dense.codec) == ("int8", "model")
        assert result.prompt_memory.resident_bytes < dense.prompt_memory.resident_bytes / 2
        with pytest.raises(InvalidRequest) as refusal:
            ask(client, question, cache_handle=coded.handle, codec="int8")
        for one in stored.values():
            client.caches.release(one.handle)
    assert (refusal.value.reason, refusal.value.field) == ("CODEC_OF_CACHE", "codec")
