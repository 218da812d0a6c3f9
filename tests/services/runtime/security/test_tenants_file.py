"""The file of tokens and limits: what is wrong with it is named, and nothing of it quoted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from services.runtime.security.tenants_file import (
    BadTenantsFile,
    StaticToken,
    TenantLimits,
    TenantsFile,
    read_tenants_file,
)

_DIGEST = hashlib.sha256(b"token").hexdigest()
_TOKEN = f'[[tokens]]\nsha256 = "{_DIGEST}"\n'


def _read(folder: Path, text: str) -> TenantsFile:
    file = folder / "tenants.toml"
    file.write_text(text)
    return read_tenants_file(file)


def test_tokens_and_limits(tmp_path: Path) -> None:
    read = _read(
        tmp_path,
        f'{_TOKEN}tenant = "acme"\nexpires = 1970-01-01T00:01:00Z\n'
        '[tenants.acme]\nstreams = 3\n[tenants."*"]\nbytes = 7',
    )
    assert read.tokens == {_DIGEST: StaticToken("acme", 60.0)}
    assert read.limits_of("acme") == TenantLimits(streams=3)
    assert read.limits_of("other") == TenantLimits(bytes=7)


def test_an_empty_file_sets_no_limits(tmp_path: Path) -> None:
    assert _read(tmp_path, "").limits_of("x") == TenantLimits()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("secret-text", "no TOML"),
        ("[[tokenz]]\nsha256 = 'secret-text'", "key beside"),
        ("tokens = ['secret-text']", r"tokens\[0\]"),
        ("[[tokens]]\nsha256 = 'secret-text'\ntenant = 'x'", "64 hexadecimal"),
        (_TOKEN, r"tokens\[0\]\.tenant"),
        (_TOKEN + "tenant = 'a b'", r"tokens\[0\]\.tenant"),
        (_TOKEN + "tenant = 'x'\ntoken = 'secret-text'", "key beside"),
        (_TOKEN + "tenant = 'x'\nexpires = 2027-01-01T00:00:00", "zone"),
        (_TOKEN + "tenant = 'x'\nexpires = 'secret-text'", "zone"),
        ("[tenants.x]\nstreams = -1", "whole number"),
        ("[tenants.x]\nstreams = true", "whole number"),
        ("[tenants.x]\nrows = 1", "key beside"),
    ],
)
def test_errors_name_their_place_in_the_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadTenantsFile, match=said) as caught:
        _read(tmp_path, text)
    assert "secret-text" not in str(caught.value)
