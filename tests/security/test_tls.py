"""Certificates: the right one is let in, any other is not, and they change while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from headwise import AsyncClient, HeadwiseError, Tls, Unavailable
from headwise.v1 import decode_pb2, decode_pb2_grpc
from services.runtime.process.serve_error import ServeError
from services.runtime.security.security_options import SecurityOptions
from services.runtime.security.tls import server_credentials
from tests.security.certificates import Authority, Pair, replace
from tests.security.small_server import SERVICE, SmallServer, serving


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that the server does not know."""
    return Authority(tmp_path_factory.mktemp("stranger"))


def _options(authority: Authority, pair: Pair, *, mutual: bool = False) -> SecurityOptions:
    return SecurityOptions(
        tls_certificate=str(pair.certificate),
        tls_key=str(pair.key),
        tls_client_ca=str(authority.file) if mutual else "",
    )


async def _fails(server: SmallServer, tls: Tls | None) -> HeadwiseError:
    calls = server.echo.calls
    async with AsyncClient(server.target, tls=tls, retries=False) as client:
        with pytest.raises(HeadwiseError) as caught:
            await client.describe(timeout_seconds=5)
    assert server.echo.calls == calls, "a refused caller reached the service"
    return caught.value


async def _answers(server: SmallServer, tls: Tls | None) -> None:
    async with AsyncClient(server.target, tls=tls, retries=False) as client:
        await client.describe()


async def test_a_client_of_the_right_authority_is_served(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    async with serving(tmp_path, _options(authority, authority.issue("server"))) as server:
        await _answers(server, authority.client_tls())
        assert isinstance(await _fails(server, None), Unavailable)
        assert isinstance(await _fails(server, stranger.client_tls()), Unavailable)


async def test_a_certificate_for_another_name_is_not_trusted(
    authority: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("elsewhere", "decode.example")
    async with serving(tmp_path, _options(authority, pair)) as server:
        assert isinstance(await _fails(server, authority.client_tls()), Unavailable)
        await _answers(server, Tls(authority.file, server_name="decode.example"))


async def test_mutual_tls_refuses_no_certificate_and_a_wrong_one(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    options = _options(authority, authority.issue("server"), mutual=True)
    async with serving(tmp_path, options) as server:
        await _answers(server, authority.client_tls(authority.issue("client")))
        for wrong in (None, stranger.issue("client")):
            error = await _fails(server, authority.client_tls(wrong))
            assert isinstance(error, Unavailable)


async def test_certificates_change_without_a_restart(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("changing")
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(tmp_path, _options(authority, pair)))
        before = AsyncClient(server.target, tls=authority.client_tls())
        await stack.enter_async_context(before)
        await before.describe()
        fresh = stranger.issue("changing")
        # a half that does not fit the other is not taken
        replace(pair.certificate, fresh.certificate.read_bytes())
        await _answers(server, authority.client_tls())
        replace(pair.key, fresh.key.read_bytes())
        await _answers(server, stranger.client_tls())
        # again: what gRPC was given once, it must not be given twice
        await _answers(server, stranger.client_tls())
        await _fails(server, authority.client_tls())
        # who is connected stays so
        await before.describe()


async def test_health_has_a_port_of_its_own_that_serves_nothing_else(
    authority: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("server")
    options = SecurityOptions(
        tls_certificate=str(pair.certificate), tls_key=str(pair.key), health_port=0
    )
    async with (
        serving(tmp_path, options) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.health_port}") as channel,
    ):
        check = health_pb2.HealthCheckRequest(service=SERVICE)
        answer = await health_pb2_grpc.HealthStub(channel).Check(check)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        decode = decode_pb2_grpc.DecodeServiceStub(channel)
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        for call in (
            decode.Describe(decode_pb2.DecodeServiceDescribeRequest()),
            anext(aiter(decode.Generate(decode_pb2.GenerateRequest(text="x")))),
            anext(aiter(reflection.ServerReflectionInfo(iter([request])))),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call, 5)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert server.echo.calls == 0


def test_files_that_cannot_be_used_stop_the_start(authority: Authority, tmp_path: Path) -> None:
    pair, other = authority.issue("one"), authority.issue("two")
    certificate, key = str(pair.certificate), str(pair.key)
    nowhere = str(tmp_path / "nowhere.pem")
    for options, said in (
        (SecurityOptions(tls_certificate=certificate), "--tls-key"),
        (SecurityOptions(tls_client_ca=str(authority.file)), "--tls-certificate"),
        (SecurityOptions(tls_certificate=nowhere, tls_key=key), "No such file"),
        (SecurityOptions(tls_certificate=certificate, tls_key=str(other.key)), "PEM"),
        (
            SecurityOptions(tls_certificate=certificate, tls_key=key, tls_client_ca=key),
            "--tls-client-ca",
        ),
    ):
        with pytest.raises(ServeError, match=said):
            server_credentials(options)


@pytest.mark.parametrize("content", [b"", b"no certificate"])
def test_a_client_s_file_that_cannot_be_used_is_an_error_and_no_crash(
    authority: Authority, tmp_path: Path, content: bytes
) -> None:
    pair, file = authority.issue("client"), tmp_path / "bad.pem"
    file.write_bytes(content)
    for tls in (Tls(file), Tls(None, file, pair.key), Tls(None, pair.certificate, file)):
        with pytest.raises(ssl.SSLError):
            AsyncClient("127.0.0.1:1", tls=tls)


def test_half_a_client_pair_is_refused(authority: Authority) -> None:
    with pytest.raises(ValueError, match="belong together"):
        Tls(authority.file, certificate=authority.issue("half").certificate)
