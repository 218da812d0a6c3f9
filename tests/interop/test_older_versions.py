"""A fleet in the middle of an upgrade: services and clients of two versions, in each pairing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise import Client, InvalidRequest, NotSupported, Refused
from services.demo.processes import Service, running_service
from tests.conftest import Pair
from tests.interop.older_versions import ARCHIVES, OlderVersion

pytestmark = pytest.mark.processes

_PROMPT = "The with statement is used to wrap the execution of a block. " * 6
_TOKENS = 8


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OlderVersion:
    return OlderVersion(request.param, tmp_path_factory.mktemp("older"))


@pytest.fixture(scope="module")
def older_decode(older: OlderVersion, tiny_pair: Pair, tiny_model: Path) -> Iterator[Service]:
    """Pulls from a prefill of today."""
    arguments = ["--model", str(tiny_model), "--prefill", tiny_pair[0].target]
    with older.running("decode", arguments) as service:
        yield service


@pytest.fixture(scope="module")
def decode_on_older(older: OlderVersion, tiny_model: Path) -> Iterator[Service]:
    """A decode of today that pulls from an older prefill."""
    model = ["--model", str(tiny_model)]
    with (
        older.running("prefill", model) as prefill,
        running_service("decode", [*model, "--prefill", prefill.target]) as decode,
    ):
        yield decode


@pytest.fixture(scope="module")
def expected(tiny_pair: Pair) -> dict[str, str]:
    """The answers of the present services."""
    return {policy: _text(tiny_pair[1], policy=policy) for policy in ("full", "coverage")}


def _text(service: Service, **options: object) -> str:
    with Client(service.target) as client:
        return client.generate(_PROMPT, max_tokens=_TOKENS, ignore_eos=True, **options).text()


@pytest.mark.parametrize("policy", ["full", "coverage"])
def test_an_older_decode_reads_what_prefill_writes_for_it(
    older_decode: Service, expected: dict[str, str], policy: str
) -> None:
    assert _text(older_decode, policy=policy) == expected[policy]


def test_a_format_that_an_older_decode_cannot_read_is_refused_by_prefill(
    older_decode: Service, expected: dict[str, str]
) -> None:
    with pytest.raises(Refused, match="needs format 3") as caught:
        _text(older_decode, policy="attention_matching")
    assert caught.value.reason == "CACHE_FORMAT_NOT_READ"
    # the refused call leaves nothing behind: the next one is served
    assert _text(older_decode, policy="full") == expected["full"]


def test_an_older_decode_keeps_unquantised_rows_and_the_result_names_the_codec(
    older_decode: Service,
) -> None:
    with Client(older_decode.target) as client:
        generation = client.generate(_PROMPT, codec="int8", max_tokens=_TOKENS, ignore_eos=True)
        assert generation.result.codec == "model"


def test_a_decode_reads_what_an_older_prefill_writes(
    decode_on_older: Service, expected: dict[str, str]
) -> None:
    assert _text(decode_on_older, policy="full") == expected["full"]
    # an older version may choose other rows
    assert _text(decode_on_older, policy="coverage")


def test_what_an_older_prefill_lacks_is_refused_by_name(decode_on_older: Service) -> None:
    with pytest.raises(Refused) as no_codec:
        _text(decode_on_older, policy="full", codec="int8")
    assert (no_codec.value.reason, no_codec.value.field) == ("FINGERPRINT_MISMATCH", "codec")
    with pytest.raises(InvalidRequest) as no_policy:
        _text(decode_on_older, policy="lookback")
    assert no_policy.value.reason == "UNKNOWN_POLICY"
    with Client(decode_on_older.target) as client, pytest.raises(NotSupported):
        client.caches.keep(_PROMPT, ttl_seconds=5)
    assert _text(decode_on_older, policy="full")


def test_an_older_client_gets_what_a_new_one_gets(
    older: OlderVersion, tiny_pair: Pair, expected: dict[str, str]
) -> None:
    for policy, text in expected.items():
        assert older.generate(tiny_pair[1].target, _PROMPT, policy, _TOKENS) == text
