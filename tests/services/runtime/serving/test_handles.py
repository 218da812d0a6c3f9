"""Handles are written and read by one grammar."""

from __future__ import annotations

import pytest

from headwise.errors import InvalidRequest
from services.runtime.serving.handles import Handle

_DIGEST = "0123456789abcdef" * 4
_LEASE = "fedcba9876543210" * 2


def test_a_handle_with_a_lease_is_read_as_it_was_written() -> None:
    handle = Handle.of_new_lease(_DIGEST)
    assert Handle.parse(str(handle)) == handle
    assert handle.digest == _DIGEST


def test_two_leases_on_one_cache_have_different_handles() -> None:
    assert Handle.of_new_lease(_DIGEST) != Handle.of_new_lease(_DIGEST)


def test_a_digest_alone_is_a_handle_without_a_lease() -> None:
    assert Handle.parse(_DIGEST) == Handle(_DIGEST, None)
    assert str(Handle(_DIGEST)) == _DIGEST


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        _DIGEST[1:],
        _DIGEST + "0",
        _DIGEST.upper(),
        _DIGEST + ".",
        f"{_DIGEST}.{_LEASE[1:]}",
        f"{_DIGEST}.{_LEASE}0",
        f"{_DIGEST}.{_LEASE}.{_LEASE}",
        f"{_DIGEST}.{_LEASE}\n",
        f"../{_DIGEST}",
    ],
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        Handle.parse(text)
    assert error.value.reason == "MALFORMED_HANDLE"
