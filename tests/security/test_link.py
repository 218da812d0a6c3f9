"""Decode's connection to prefill: its files, and their change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from headwise import Unavailable
from headwise.v1 import decode_pb2, decode_pb2_grpc
from services.decode.link.link_options import LinkOptions
from services.decode.link.prefill_errors import prefill_errors
from services.decode.link.prefill_link import PrefillLink
from services.runtime.process.logs import request_id
from services.runtime.process.serve_error import ServeError
from services.runtime.security.security_options import SecurityOptions
from tests.security.certificates import Authority
from tests.security.small_server import serving


@pytest.fixture(autouse=True)
def _request() -> Iterator[None]:
    token = request_id.set("r-1")
    yield
    request_id.reset(token)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


async def _ask(link: PrefillLink) -> None:
    """Any call does: the small server stands in prefill's place."""
    stub = decode_pb2_grpc.DecodeServiceStub(link.channel)
    await stub.Describe(decode_pb2.DecodeServiceDescribeRequest(), timeout=5)


async def test_own_certificates_are_renewed_and_running_calls_end(
    authority: Authority, tmp_path: Path
) -> None:
    pair, own = authority.issue("prefill"), authority.issue("decode")
    security = SecurityOptions(str(pair.certificate), str(pair.key), str(authority.file))
    options = LinkOptions(str(authority.file), str(own.certificate), str(own.key))
    async with serving(tmp_path, security) as server:
        link = PrefillLink(server.target, options)
        await _ask(link)
        first = link.channel
        assert link.channel is first
        server.echo.hold.clear()
        running = decode_pb2_grpc.DecodeServiceStub(first).Generate(
            decode_pb2.GenerateRequest(text="x"), timeout=20
        )
        assert (await running.read()).HasField("delta")
        authority.issue("decode")
        assert link.channel is not first
        await _ask(link)
        # the old channel waits for the call on it
        await asyncio.sleep(0.1)
        server.echo.hold.set()
        assert (await running.read()).HasField("result")
        await link.close()


async def test_decode_refuses_a_prefill_with_an_unknown_certificate(
    authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger")
    pair = stranger.issue("prefill")
    async with serving(tmp_path, SecurityOptions(str(pair.certificate), str(pair.key))) as server:
        link = PrefillLink(server.target, LinkOptions(str(authority.file)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _ask(link)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert server.echo.calls == 0
        await link.close()


async def test_clients_are_not_told_prefill_s_address(caplog: pytest.LogCaptureFixture) -> None:
    link = PrefillLink("127.0.0.1:1", LinkOptions())
    for _ in range(3):
        with pytest.raises(Unavailable) as caught, prefill_errors("127.0.0.1:1"):
            await _ask(link)
        assert caught.value.message == "prefill is unavailable"
        assert caught.value.reason == "PREFILL_UNAVAILABLE"
    await link.close()
    # one line for the operator, however many calls fail
    assert caplog.text.count("prefill at 127.0.0.1:1 is unavailable") == 1


async def test_the_token_is_read_for_each_call(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    link = PrefillLink("127.0.0.1:1", LinkOptions(prefill_token=str(file)))
    assert dict(link.metadata()) == {"authorization": "Bearer first", "x-request-id": "r-1"}
    file.write_text("the second\n")
    assert dict(link.metadata())["authorization"] == "Bearer first"
    file.write_text("second\n")
    assert dict(link.metadata())["authorization"] == "Bearer second"
    await link.close()


async def test_prefill_receives_the_tenant() -> None:
    link = PrefillLink("127.0.0.1:1", LinkOptions())
    told = [dict(link.metadata(tenant)) for tenant in ("acme", "globex", "")]
    assert [one.get("x-headwise-tenant") for one in told] == ["acme", "globex", None]
    await link.close()


@pytest.mark.parametrize("text", ["", "\n", "two words", "tök"])
def test_a_file_without_a_token_stops_the_start(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ServeError, match="--prefill-token"):
        PrefillLink("127.0.0.1:1", LinkOptions(prefill_token=str(file)))


def test_a_token_does_not_cross_a_network_in_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret-one")
    with pytest.raises(ServeError, match="plain text") as caught:
        PrefillLink("prefill.example:7081", LinkOptions(prefill_token=str(file)))
    assert "secret-one" not in str(caught.value)


def test_files_that_do_not_fit_stop_the_start(authority: Authority) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    authorities, certificate = str(authority.file), str(one.certificate)
    for options, said in (
        (LinkOptions(authorities, certificate), "--prefill-key"),
        (LinkOptions("", certificate, str(one.key)), "--prefill-ca"),
        (LinkOptions(authorities, certificate, str(two.key)), "cannot use"),
        (LinkOptions(str(one.key)), "cannot use"),
    ):
        with pytest.raises(ServeError, match=said):
            PrefillLink("127.0.0.1:1", options)
