"""Streams, retries, deadlines and cancellation of both clients, against a scripted service."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import cast

import grpc
import pytest

from headwise import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Delta,
    FinishReason,
    HeadwiseError,
    InternalError,
    NotSupported,
    Overloaded,
    Unavailable,
)
from headwise.v1.decode_pb2 import FinishReason as FinishReasonValue
from headwise.v1.decode_pb2 import GenerateResponse
from tests.headwise.fake_service import delta, result, serving
from tests.observe import wait_until


def _good(call: int, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
    yield from (delta("a"), delta("b"), result())


def _from_a_newer_server(call: int, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
    # field 1023, and a reason to finish of 9, are nothing this contract has
    yield GenerateResponse.FromString(b"\xf8\x3f\x01")
    yield delta("a")
    last = result()
    last.result.finish_reason = cast(FinishReasonValue, 9)
    yield last


def _busy_at_first(call: int, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
    if call == 0:
        raise Unavailable("come again", "DRAINING")
    yield from _good(call, context)


def _never_there(call: int, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
    raise Unavailable("gone", "DRAINING")
    yield


def _gone_after_a_token(call: int, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
    yield delta("a")
    raise Unavailable("gone", "DRAINING")


def _full(call: int, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
    raise Overloaded("full", "POOL_EXHAUSTED", retry_after_seconds=1.5)
    yield


def _until_cancelled(call: int, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
    yield delta("a")
    ended = threading.Event()
    context.add_callback(ended.set)
    assert ended.wait(10)


def _no_result(call: int, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
    yield delta("a")


def test_deltas_then_the_result() -> None:
    with serving(_good) as (_, target), Client(target) as client:
        generation = client.generate("x")
        assert list(generation) == [Delta("a", (1,)), Delta("b", (1,))]
        assert generation.result.finish_reason is FinishReason.LENGTH
        assert generation.result.usage.completion_tokens == 2


def test_what_a_newer_server_says_beyond_the_contract_does_no_harm() -> None:
    with serving(_from_a_newer_server) as (_, target), Client(target) as client:
        generation = client.generate("x")
        assert list(generation) == [Delta("a", (1,))]
        assert generation.result.finish_reason is FinishReason.OTHER


def test_the_result_alone_reads_the_stream() -> None:
    with serving(_good) as (_, target), Client(target) as client:
        assert client.generate("x").result.usage.prompt_tokens == 3


def test_a_call_that_failed_before_its_first_token_is_begun_again() -> None:
    with serving(_busy_at_first) as (fake, target), Client(target) as client:
        assert client.generate("x").text() == "ab"
    assert len(fake.calls) == 2


def test_retries_end_and_can_be_switched_off() -> None:
    for retries, calls in ((True, 3), (False, 1)):
        with (
            serving(_never_there) as (fake, target),
            Client(target, retries=retries) as client,
            pytest.raises(Unavailable) as caught,
        ):
            client.generate("x").text()
        assert caught.value.reason == "DRAINING"
        assert len(fake.calls) == calls


def test_a_generation_that_has_begun_is_never_begun_again() -> None:
    with serving(_gone_after_a_token) as (fake, target), Client(target) as client:
        deltas = iter(client.generate("x"))
        assert next(deltas).text == "a"
        with pytest.raises(Unavailable):
            next(deltas)
    assert len(fake.calls) == 1


def test_other_failures_are_not_retried_and_say_when_to_come_again() -> None:
    with (
        serving(_full) as (fake, target),
        Client(target) as client,
        pytest.raises(Overloaded) as caught,
    ):
        client.generate("x").text()
    assert caught.value.retry_after_seconds == 1.5
    assert len(fake.calls) == 1


def test_a_target_without_a_server_is_unavailable() -> None:
    with Client("127.0.0.1:1", retries=False) as client, pytest.raises(Unavailable):
        client.generate("x").text()


def test_the_deadline_is_the_callers() -> None:
    with (
        serving(_until_cancelled) as (_, target),
        Client(target) as client,
        pytest.raises(DeadlineExceeded),
    ):
        client.generate("x", timeout_seconds=0.3).text()


@pytest.mark.parametrize("how", ["cancel", "with block", "iterator dropped"])
def test_leaving_early_ends_the_call_at_the_server(how: str) -> None:
    with serving(_until_cancelled) as (fake, target), Client(target) as client:
        generation = client.generate("x")
        deltas = iter(generation)
        next(deltas)
        ended = threading.Event()
        assert fake.calls[0].add_callback(ended.set)
        if how == "cancel":
            generation.cancel()
        elif how == "with block":
            with generation:
                pass
        else:
            del deltas
        assert ended.wait(5)


def test_a_stream_without_a_result_is_an_error() -> None:
    with (
        serving(_no_result) as (_, target),
        Client(target) as client,
        pytest.raises(InternalError) as caught,
    ):
        _ = client.generate("x").result
    assert caught.value.reason == "NO_RESULT"


def test_the_request_id_travels() -> None:
    with serving(_good) as (fake, target), Client(target) as client:
        client.generate("x", request_id="abc").text()
        sent = {item.key: item.value for item in fake.calls[0].invocation_metadata()}
    assert sent["x-request-id"] == "abc"


async def test_the_async_client_streams_retries_and_returns_the_result() -> None:
    with serving(_busy_at_first) as (fake, target):
        async with AsyncClient(target) as client:
            generation = client.generate("x")
            assert [d.text async for d in generation] == ["a", "b"]
            assert (await generation.result()).usage.completion_tokens == 2
            assert (await client.generate("x").result()).usage.prompt_tokens == 3
    assert len(fake.calls) == 3


async def test_the_async_client_raises_the_same_errors() -> None:
    with serving(_gone_after_a_token) as (fake, target):
        async with AsyncClient(target) as client:
            with pytest.raises(Unavailable):
                await client.generate("x").text()
    assert len(fake.calls) == 1
    with serving(_until_cancelled) as (_, target):
        async with AsyncClient(target) as client:
            with pytest.raises(DeadlineExceeded):
                await client.generate("x", timeout_seconds=0.3).text()


async def test_leaving_the_async_stream_ends_the_call_at_the_server() -> None:
    with serving(_until_cancelled) as (fake, target):
        async with AsyncClient(target) as client:
            generation = client.generate("x")
            async for _ in generation:
                break
            ended = threading.Event()
            assert fake.calls[0].add_callback(ended.set)
            generation.cancel()
            assert await asyncio.to_thread(ended.wait, 5)
            # not asyncio's own error, which would end the caller's task
            with pytest.raises(Cancelled):
                await generation.result()


async def test_a_cancelled_task_is_cancelled_and_its_call_with_it() -> None:
    with serving(_until_cancelled) as (fake, target):
        async with AsyncClient(target) as client:
            task = asyncio.create_task(client.generate("x").text())
            await asyncio.to_thread(wait_until, lambda: bool(fake.calls), 5, "the call")
            ended = threading.Event()
            assert fake.calls[0].add_callback(ended.set)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(ended.wait, 5)


def test_a_cancelled_generation_raises_its_typed_error() -> None:
    with serving(_until_cancelled) as (_, target), Client(target) as client:
        generation = client.generate("x")
        generation.cancel()
        with pytest.raises(Cancelled):
            _ = generation.result


def test_the_async_client_serves_one_event_loop_after_another() -> None:
    with serving(_good) as (_, target):
        client = AsyncClient(target)

        async def ask() -> str:
            return await client.generate("x").text()

        assert asyncio.run(ask()) == asyncio.run(ask()) != ""


def test_a_result_has_the_text_whatever_was_read_before() -> None:
    with serving(_good) as (_, target), Client(target) as client:
        assert client.generate("x").result.text == "ab"
        generation = client.generate("x")
        assert next(iter(generation)).text == "a"
        whole = client.generate("x")
        assert [delta.text for delta in whole] == ["a", "b"]
        assert whole.text() == whole.result.text == "ab"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://127.0.0.1:7080", "no http://"),
        ("https://decode.example:7080/v1", "give decode.example:7080 and TLS"),
        ("localhost", "port is missing"),
        ("::1", "port is missing"),
        ("127.0.0.1:http", "no port"),
        ("127.0.0.1:70800", "no port"),
        ("127.0.0.1:7080/generate", "no path"),
        (":7080", "host is missing"),
        ("", "empty"),
    ],
)
def test_a_target_that_is_no_address_is_told_in_plain_words(target: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Client(target)
    with pytest.raises(ValueError, match=words):
        AsyncClient(target)


@pytest.mark.parametrize(
    "target", ["[::1]:7080", "dns:///decode:7080", "dns:decode:7080", "unix:/run/decode.sock"]
)
def test_every_spelling_of_an_address_is_taken(target: str) -> None:
    Client(target).close()


def test_another_service_is_told_in_plain_words() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with (
        Client(f"127.0.0.1:{port}") as client,
        pytest.raises(NotSupported, match="another service answers"),
    ):
        client.generate("x").text()
    server.stop(None)


def test_a_web_server_is_told_in_plain_words() -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with (
        Client(f"127.0.0.1:{server.server_port}", retries=False) as client,
        pytest.raises(HeadwiseError, match="no gRPC service answers"),
    ):
        client.generate("x").text()
    server.shutdown()
    server.server_close()
