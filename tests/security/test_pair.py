"""Two real services behind mutual TLS and tokens: whoever should not be let in is not, and what
callers say in confidence is nowhere in what the services write.
"""

from __future__ import annotations

import concurrent.futures
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headwise import (
    Client,
    HeadwiseError,
    InvalidRequest,
    Message,
    NotFound,
    Overloaded,
    Tls,
    Unauthenticated,
    Unavailable,
)
from headwise.v1 import prefill_pb2, prefill_pb2_grpc
from services.commands import command_line
from tests.interop.clients import node_client
from tests.observe import wait_until
from tests.security.certificates import Authority
from tests.security.conftest import FETCH_TOKENS, TOKENS, SecurePair
from tests.security.tokens import Issuer

pytestmark = pytest.mark.processes

_PROMPT = "The zanzibar with statement wraps the execution of a quixotic block. " * 3


def _error(call: Callable[[], object]) -> HeadwiseError:
    with pytest.raises(HeadwiseError) as caught:
        call()
    return caught.value


def _ask(client: Client, **options: object) -> str:
    return client.generate(_PROMPT, max_tokens=2, ignore_eos=True, **options).text()


def test_a_good_certificate_and_a_good_token_are_answered(secure_pair: SecurePair) -> None:
    for token in (TOKENS["acme"], secure_pair.issuer.sign(tenant="acme")):
        with secure_pair.client(token) as client:
            assert client.describe().default_policy
            assert len(client.generate(_PROMPT, max_tokens=3, ignore_eos=True).text()) > 0


def test_wrong_and_missing_certificates_are_refused(
    secure_pair: SecurePair, tmp_path_factory: pytest.TempPathFactory
) -> None:
    right = secure_pair.authority
    stranger = Authority(tmp_path_factory.mktemp("stranger"))
    other = stranger.issue("client")
    wrong: tuple[Tls | None, ...] = (
        None,
        right.client_tls(),
        Tls(right.file, other.certificate, other.key),
        stranger.client_tls(secure_pair.client_pair),
    )
    for service in (secure_pair.prefill, secure_pair.decode):
        for tls in wrong:
            with Client(service.target, tls=tls, token="acme", retries=False) as client:
                error = _error(lambda c=client: c.describe(timeout_seconds=10))
            assert isinstance(error, Unavailable)
            assert _reveals_nothing(error)


def test_wrong_expired_and_missing_tokens_are_refused(secure_pair: SecurePair) -> None:
    cases = {
        None: "TOKEN_MISSING",
        "wrong-token": "TOKEN_REFUSED",
        TOKENS["decode"]: "TOKEN_REFUSED",
        secure_pair.issuer.sign(-3600, tenant="acme"): "TOKEN_EXPIRED",
        Issuer().sign(tenant="acme"): "TOKEN_REFUSED",
    }
    for token, reason in cases.items():
        with secure_pair.client(token) as client:
            for call in (lambda c=client: _ask(c), client.sessions.list, client.describe):
                error = _error(call)
                assert isinstance(error, Unauthenticated)
                assert error.reason == reason
                assert _reveals_nothing(error)


def test_prefill_is_for_decode_alone(secure_pair: SecurePair) -> None:
    credentials = secure_pair.tls.credentials()
    with grpc.secure_channel(secure_pair.prefill.target, credentials) as channel:
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        request = prefill_pb2.PrefillRequest(token_ids=[5, 6, 7])
        metadata = (("authorization", f"Bearer {TOKENS['acme']}"),)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Prefill(request, timeout=20, metadata=metadata))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_tenant_without_tokens_left_is_refused_with_a_retry_delay(
    secure_pair: SecurePair,
) -> None:
    with secure_pair.client(TOKENS["small"]) as small:
        small.generate([7] * 38, max_tokens=2, ignore_eos=True).text()
        error = _error(lambda: small.generate([7] * 5, max_tokens=1).text())
    assert isinstance(error, Overloaded)
    assert error.reason == "TENANT_TOKENS"
    assert 0 < (error.retry_after_seconds or 0) <= 60
    # nobody else is affected
    with secure_pair.client(TOKENS["globex"]) as globex:
        _ask(globex)


def test_the_kubelet_s_port_says_that_it_serves(secure_pair: SecurePair) -> None:
    for service in (secure_pair.prefill, secure_pair.decode):
        with grpc.insecure_channel(f"127.0.0.1:{service.health_port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_command_line_takes_certificates_and_a_token(
    secure_pair: SecurePair, tmp_path: Path
) -> None:
    pair = secure_pair.client_pair
    file = tmp_path / "token"
    file.write_text(TOKENS["acme"] + "\n")
    command = ["generate", "--target", secure_pair.decode.target, "x y", "--max-tokens", "2"]
    flags = ["--tls-ca", str(secure_pair.authority.file), "--tls-certificate"]
    flags += [str(pair.certificate), "--tls-key", str(pair.key), "--token-file", str(file)]
    answered = CliRunner().invoke(command_line, [*command, *flags])
    assert answered.exit_code == 0, answered.output
    refused = CliRunner().invoke(command_line, [*command, *flags[:-2]])
    assert refused.exit_code == 1
    assert "TOKEN_MISSING" in refused.output
    half = CliRunner().invoke(command_line, [*command, *flags[:4]])
    assert half.exit_code == 2
    assert "belong together" in half.output


def test_the_doctor_names_missing_credentials(secure_pair: SecurePair, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKENS["decode"])
    pair = secure_pair.client_pair
    token = ["--token-file", str(file)]
    tls = ["--tls-ca", str(secure_pair.authority.file)]
    tls += ["--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key)]
    # nobody but decode has a token for prefill
    for flags, code, said in (
        ([*tls, *token], 0, "prefill of "),
        (tls, 1, "Give --token-file"),
        (token, 1, "give --tls-ca"),
    ):
        command = ["doctor", "--target", secure_pair.prefill.target, *flags]
        ran = CliRunner().invoke(command_line, command, env={"COLUMNS": "220"})
        assert ran.exit_code == code, ran.output
        assert said in ran.output


def test_top_shows_a_tenant_its_own_sessions_and_says_what_it_takes(
    secure_pair: SecurePair, tmp_path: Path
) -> None:
    tls, file = secure_pair.tls, tmp_path / "token"
    flags = ["--tls-ca", str(tls.ca), "--tls-certificate", str(tls.certificate)]
    flags += ["--tls-key", str(tls.key), "--token-file", str(file)]
    command = ["top", "--once", "--target", secure_pair.decode.target]
    with secure_pair.client(TOKENS["acme"]) as acme:
        options = {"max_tokens": 2, "session_ttl_seconds": 60.0}
        session = acme.generate(_PROMPT, **options).result.session_id
        for name, seen in (("acme", True), ("globex", False)):
            file.write_text(TOKENS[name])
            ran = CliRunner().invoke(command_line, [*command, *flags], env={"COLUMNS": "220"})
            assert ran.exit_code == 0, ran.output
            assert (session in ran.output) == seen
        acme.sessions.release(session)
    file.write_text("wrong-token")
    for given, said in ((flags, "TOKEN_REFUSED"), (flags[:-2], "TOKEN_MISSING")):
        ran = CliRunner().invoke(command_line, [*command, *given], env={"COLUMNS": "220"})
        assert ran.exit_code == 1
        assert said in ran.output
        assert "Give --token-file" in ran.output
        assert "wrong-token" not in ran.output


def test_a_node_client_shows_its_certificate_and_token(
    secure_pair: SecurePair, tmp_path: Path
) -> None:
    command, environment = node_client("generate.js")
    tls, file = secure_pair.tls, tmp_path / "token"
    environment |= {"TLS_CA": str(tls.ca), "TOKEN_FILE": str(file)}
    environment |= {"TLS_CERTIFICATE": str(tls.certificate), "TLS_KEY": str(tls.key)}
    command += [secure_pair.decode.target, "x y", "2"]
    for token, code in ((TOKENS["acme"], 0), ("wrong-token", 1)):
        file.write_text(token)
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == code, ran.stderr
        assert ("UNAUTHENTICATED" in ran.stderr) == bool(code)


def test_prompts_answers_and_tokens_are_never_logged(secure_pair: SecurePair) -> None:
    """Load of every kind, answered and refused, and then everything written is looked through."""
    signed = secure_pair.issuer.sign(tenant="acme")
    words = ("zanzibar", "quixotic", "xylograph")
    errors = list[HeadwiseError]()

    def work(number: int) -> None:
        token = (TOKENS["acme"], TOKENS["globex"], signed, "wrong-token")[number % 4]
        with secure_pair.client(token) as client:
            for options in (
                {"stop": ["xylograph"]},
                {"policy": "xylograph"},
                {"max_tokens": 2**30},
                {"session_id": "xylograph"},
                {"stop": ["xylograph"] * 20},
            ):
                try:
                    client.generate(
                        [Message("user", _PROMPT)], **{"max_tokens": 3, **options}
                    ).text()
                except HeadwiseError as error:
                    errors.append(error)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(8)))
    assert {type(error) for error in errors} >= {InvalidRequest, NotFound, Unauthenticated}
    wait_until(lambda: "Generate" in secure_pair.decode.log.read_text(), 5, "a log line")
    time.sleep(0.2)
    keys = [
        line
        for key in secure_pair.authority.file.parent.glob("*.key")
        for line in key.read_text().splitlines()[1:-1]
    ]
    secrets = (
        *words,
        *TOKENS.values(),
        *FETCH_TOKENS.values(),
        signed,
        signed.split(".")[2],
        *keys,
    )
    for service in (secure_pair.prefill, secure_pair.decode):
        with urllib.request.urlopen(service.metrics_url, timeout=10) as answer:
            written = service.log.read_text() + answer.read().decode()
        assert "Generate OK" in written or "Prefill OK" in written
        found = [secret for secret in secrets if secret in written]
        assert not found
    # a caller may be told its own words again, as a policy's unknown name, but no one's token
    told = "".join(f"{error}{error.metadata}" for error in errors)
    assert not [secret for secret in secrets if secret in told and secret not in words]
    assert not [word for word in words[:2] if word in told]


def _reveals_nothing(error: HeadwiseError) -> bool:
    said = f"{error}{error.metadata}"
    return not any(token in said for token in (*TOKENS, *TOKENS.values(), "tenants.toml"))
