"""A call that is passed on between replicas keeps its caller: mutual TLS, tokens and tenants."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise import Client, NotFound
from services.demo.processes import Service, running_service
from tests.interop.envoy import free_ports
from tests.interop.replicas import running_replicas
from tests.observe import wait_until
from tests.security.certificates import Authority
from tests.security.tokens import entry, write

pytestmark = pytest.mark.processes

_TOKENS = {"acme": "acme-token-1b77", "globex": "globex-token-9f20"}


@pytest.fixture(scope="module")
def replicas(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[Service], Authority]]:
    folder = tmp_path_factory.mktemp("replicas")
    authority = Authority(folder / "authority")
    pair = authority.issue("decode")
    tokens = write(folder / "tokens", *(entry(token, name) for name, token in _TOKENS.items()))
    arguments = ["--model", str(tiny_model), "--log-level", "DEBUG"]
    arguments += ["--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key)]
    arguments += ["--tls-client-ca", str(authority.file), "--tokens", str(tokens)]
    with running_service("prefill", ["--model", str(tiny_model)]) as prefill:
        link = ["--prefill", prefill.target]
        with running_replicas("decode", free_ports(2), [*arguments, *link]) as decodes:
            yield decodes, authority


def test_every_turn_is_its_callers_own(replicas: tuple[list[Service], Authority]) -> None:
    decodes, authority = replicas
    tls = authority.client_tls(authority.issue("client"))
    for first, second in itertools.permutations(decodes):
        with (
            Client(first.target, tls=tls, token=_TOKENS["acme"]) as acme,
            Client(second.target, tls=tls, token=_TOKENS["acme"]) as elsewhere,
            Client(second.target, tls=tls, token=_TOKENS["globex"]) as globex,
        ):
            wait_until(lambda client=acme: bool(client.describe().default_policy), 30, "decode")
            asked = acme.generate("x y z", max_tokens=2, session_ttl_seconds=60)
            session_id = asked.result.session_id
            turn = elsewhere.generate("more", max_tokens=2, session_id=session_id)
            assert turn.result.session_id == session_id
            with pytest.raises(NotFound) as caught:
                globex.generate("more", max_tokens=2, session_id=session_id).text()
            assert caught.value.reason == "SESSION_UNKNOWN"
            elsewhere.sessions.release(session_id)
    for decode in decodes:
        log = decode.log.read_text()
        assert not any(token in log for token in _TOKENS.values())
