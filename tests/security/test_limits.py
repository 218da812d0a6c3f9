"""A tenant's limit on the wire: which calls count, what is answered, and who is not concerned."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwise import AsyncClient, Overloaded, Unauthenticated
from services.runtime.security.security_options import SecurityOptions
from tests.security.small_server import serving
from tests.security.tokens import entry, write


async def test_one_stream_too_many_is_refused_with_a_retry_delay(tmp_path: Path) -> None:
    file = write(
        tmp_path / "tenants.toml",
        entry("one-token", "one"),
        entry("two-token", "two"),
        '[tenants."*"]\nstreams = 1',
    )
    async with (
        serving(tmp_path, SecurityOptions(tokens=str(file))) as server,
        AsyncClient(server.target, token="one-token", retries=False) as one,
        AsyncClient(server.target, token="two-token", retries=False) as two,
    ):
        server.echo.hold.clear()
        running = aiter(one.generate("x"))
        assert (await anext(running)).text == "one"
        with pytest.raises(Overloaded) as caught:
            await one.generate("x").text()
        assert caught.value.reason == "TENANT_STREAMS"
        assert caught.value.retry_after_seconds
        # what is no stream is not limited, nor is anybody else
        assert (await one.describe()).default_policy == "one"
        assert (await anext(aiter(two.generate("x")))).text == "two"
        server.echo.hold.set()
        assert [delta async for delta in running] == []
        assert await one.generate("x").text() == "one"


async def test_a_token_may_be_renewed_while_a_client_lives(tmp_path: Path) -> None:
    file = write(tmp_path / "tenants.toml", entry("first-token", "acme"))
    token = "first-token"
    async with (
        serving(tmp_path, SecurityOptions(tokens=str(file))) as server,
        AsyncClient(server.target, token=lambda: token) as client,
    ):
        await client.describe()
        write(file, entry("second-token", "globex"))
        token = "second-token"
        assert (await client.describe()).default_policy == "globex"


async def test_a_service_that_starts_with_an_empty_file_is_never_open(tmp_path: Path) -> None:
    file = write(tmp_path / "tenants.toml", "")
    async with (
        serving(tmp_path, SecurityOptions(tokens=str(file))) as server,
        AsyncClient(server.target, tenant="victim") as stranger,
        AsyncClient(server.target, token="late-token") as late,
    ):
        for client in (stranger, late):
            with pytest.raises(Unauthenticated):
                await client.describe()
        write(file, entry("late-token", "acme"))
        assert (await late.describe()).default_policy == "acme"
        with pytest.raises(Unauthenticated):
            await stranger.describe()


@pytest.mark.parametrize("token", ["", "secret-token\n", "secret token", "secret-tökän"])
async def test_what_cannot_be_a_token_is_not_quoted(token: str) -> None:
    async with AsyncClient("127.0.0.1:1", token=token) as client:
        with pytest.raises(ValueError, match="printable") as caught:
            await client.describe()
    assert "secret" not in str(caught.value)


def test_a_token_never_crosses_a_network_in_plain_text() -> None:
    for target in ("decode.example:7080", "dns:///10.0.0.1:7080", "192.0.2.7:7080"):
        with pytest.raises(ValueError, match="plain text") as caught:
            AsyncClient(target, token="secret-token")
        assert "secret-token" not in str(caught.value)
