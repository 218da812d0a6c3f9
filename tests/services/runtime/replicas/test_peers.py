"""Addresses of replicas as options name them, their credentials, and tags in ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runtime.process.serve_error import ServeError
from services.runtime.replicas.addresses import Address, PeerNames
from services.runtime.replicas.peer_credentials import PeerCredentials
from services.runtime.replicas.tag import (
    OWN_TAG,
    foreign_lease_tag,
    foreign_session_tag,
    new_lease,
    new_session_id,
)
from services.runtime.security.security_options import SecurityOptions

_OTHER = "0123456789ab" if OWN_TAG != "0123456789ab" else "ba9876543210"


async def test_every_address_of_every_name_is_a_replica() -> None:
    names = PeerNames.parse("127.0.0.1:7080, [::1]:7080,dns:///127.0.0.2:7081")
    found = await names.resolve()
    assert {address.target for address in found} == {
        "ipv4:127.0.0.1:7080",
        "ipv6:[::1]:7080",
        "ipv4:127.0.0.2:7081",
    }
    assert Address("127.0.0.2", "127.0.0.2", 7081) in found


async def test_a_name_without_addresses_has_no_replicas() -> None:
    assert await PeerNames.parse("no-such-host.invalid:7080").resolve() == []


@pytest.mark.parametrize("text", ["decode", "decode:", ":7080", "decode:0", "decode:x", "a:1,,b:2"])
def test_a_malformed_peer_stops_the_process_and_names_the_option(text: str) -> None:
    with pytest.raises(ServeError, match="--peers"):
        PeerNames.parse(text)


@pytest.mark.parametrize("option", ["tokens", "jwt_keys"])
def test_tokens_do_not_cross_a_network_in_plain_text(option: str) -> None:
    security = SecurityOptions(**{option: "file"})
    with pytest.raises(ServeError, match="plain text"):
        PeerCredentials(PeerNames.parse("headwise-decode:7080"), security)
    assert PeerCredentials(PeerNames.parse("127.0.0.1:7080"), security).current() is None


def test_unusable_files_stop_the_process_by_name(tmp_path: Path) -> None:
    security = SecurityOptions(tls_certificate=str(tmp_path / "a"), tls_key=str(tmp_path / "b"))
    with pytest.raises(ServeError, match="--peers"):
        PeerCredentials(PeerNames.parse("headwise-decode:7080"), security)


def test_an_id_ends_in_the_tag_of_its_process() -> None:
    session, handle = new_session_id(), f"{'0' * 64}.{new_lease()}"
    assert session != new_session_id()
    assert foreign_session_tag(session) is foreign_lease_tag(handle) is None
    assert foreign_session_tag(session[:-12] + _OTHER) == _OTHER
    assert foreign_lease_tag(handle[:-12] + _OTHER) == _OTHER


@pytest.mark.parametrize("name", ["", "x", "0" * 32, "0" * 64, f"{'0' * 64}.{'0' * 31}"])
def test_another_name_has_no_tag(name: str) -> None:
    assert foreign_session_tag(name) is foreign_lease_tag(name) is None
