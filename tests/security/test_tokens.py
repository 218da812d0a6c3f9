"""Tokens: the right one is a tenant, any other is refused in words that reveal nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from headwise import Forbidden, HeadwiseError, InvalidRequest, Unauthenticated
from headwise.errors import Overloaded
from services.runtime.process.serve_error import ServeError
from services.runtime.security.authentication import Authentication
from services.runtime.security.identity import Identity
from services.runtime.security.security_options import SecurityOptions
from tests.security.tokens import Issuer, entry, pem, write


def _identify(authentication: Authentication, token: str = "", tenant: str = "") -> Identity:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    metadata += [("x-headwise-tenant", tenant)] if tenant else []
    return authentication.identify(metadata)


def _refusal(call: Callable[[], object]) -> HeadwiseError:
    with pytest.raises(HeadwiseError) as caught:
        call()
    return caught.value


@pytest.fixture
def static(tmp_path: Path) -> Authentication:
    file = write(
        tmp_path / "tenants.toml",
        entry("good-token", "acme"),
        entry("old-token", "acme", "2020-01-01T00:00:00Z"),
        entry("young-token", "acme", "2999-01-01T00:00:00+02:00"),
        entry("service-token", "*"),
        "[tenants.acme]\nstreams = 1",
    )
    return Authentication(SecurityOptions(tokens=str(file)))


def test_a_token_is_its_tenant_with_that_tenants_limits(static: Authentication) -> None:
    for token in ("good-token", "young-token"):
        identity = _identify(static, token)
        assert identity.tenant == "acme"
        assert identity.allowance.limits.streams == 1
    assert _identify(static, "good-token", "acme").tenant == "acme"


def test_a_service_names_the_tenant_it_acts_for(static: Authentication) -> None:
    identity = _identify(static, "service-token", "acme")
    assert identity.tenant == "acme"
    assert identity.allowance is _identify(static, "good-token").allowance
    assert _identify(static, "service-token").tenant == ""


def test_calls_without_a_token_are_refused(static: Authentication) -> None:
    error = _refusal(lambda: _identify(static, tenant="acme"))
    assert isinstance(error, Unauthenticated)
    assert error.reason == "TOKEN_MISSING"
    for value in ("good-token", "Basic good-token", "bearer", b"Bearer good-token"):
        metadata = [("authorization", value)]
        assert _refusal(lambda m=metadata: static.identify(m)).reason == "TOKEN_MISSING"


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("bad-token", "TOKEN_REFUSED"),
        ("good-token2", "TOKEN_REFUSED"),
        ("a.b.c", "TOKEN_REFUSED"),
        # the hash in the file is no token
        (hashlib.sha256(b"good-token").hexdigest(), "TOKEN_REFUSED"),
        ("old-token", "TOKEN_EXPIRED"),
    ],
)
def test_a_token_that_is_not_good_is_refused(
    static: Authentication, token: str, reason: str
) -> None:
    error = _refusal(lambda: _identify(static, token))
    assert isinstance(error, Unauthenticated)
    assert error.reason == reason
    assert token not in str(error)
    assert error.metadata == {}


def test_another_tenants_name_is_forbidden(static: Authentication) -> None:
    error = _refusal(lambda: _identify(static, "good-token", "globex"))
    assert isinstance(error, Forbidden)
    assert error.field == "x-headwise-tenant"
    assert "acme" not in str(error)
    assert "globex" not in str(error)


def test_a_tenant_or_token_named_twice_is_refused(static: Authentication) -> None:
    token, tenant = ("authorization", "Bearer good-token"), ("x-headwise-tenant", "acme")
    assert static.identify([token, tenant]).tenant == "acme"
    for other in ("acme", "globex"):
        for pairs in ([tenant, ("x-headwise-tenant", other)], [(tenant[0], other), tenant]):
            assert _refusal(lambda p=pairs: static.identify([token, *p])).reason == "INVALID_TENANT"
    both = [token, ("authorization", "Bearer service-token"), tenant]
    assert _refusal(lambda: static.identify(both)).reason == "TOKEN_MISSING"


@pytest.mark.parametrize("tenant", ["a b", "*", "-a", "x" * 65, "ä"])
def test_a_tenants_name_is_plain(static: Authentication, tenant: str) -> None:
    error = _refusal(lambda: _identify(static, "service-token", tenant))
    assert isinstance(error, InvalidRequest)
    assert error.field == "x-headwise-tenant"


def test_without_files_the_caller_names_its_tenant() -> None:
    authentication = Authentication(SecurityOptions())
    assert not authentication.required
    assert _identify(authentication, "any-token", "acme").tenant == "acme"
    assert _identify(authentication).tenant == ""


def test_limits_without_tokens_require_no_token(tmp_path: Path) -> None:
    file = write(tmp_path / "tenants.toml", '[tenants."*"]\nstreams = 1')
    authentication = Authentication(SecurityOptions(tokens=str(file)))
    assert not authentication.required
    with _identify(authentication, tenant="a").allowance.stream():
        error = _refusal(_identify(authentication, tenant="a").allowance.stream().__enter__)
        assert isinstance(error, Overloaded)


def test_an_empty_file_lets_nobody_in_until_it_has_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "tenants.toml", "# a secret that is filled later")
    authentication = Authentication(SecurityOptions(tokens=str(file)))
    assert f"{file} is empty: every call is refused" in caplog.text
    for token in ("", "late-token"):
        assert isinstance(_refusal(lambda t=token: _identify(authentication, t)), Unauthenticated)
    write(file, entry("late-token", "acme"))
    assert _identify(authentication, "late-token").tenant == "acme"
    assert _refusal(lambda: _identify(authentication, tenant="acme")).reason == "TOKEN_MISSING"


def test_tokens_that_come_later_are_asked_for_and_stay_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = '[tenants."*"]\nstreams = 1'
    file = write(tmp_path / "tenants.toml", limits)
    authentication = Authentication(SecurityOptions(tokens=str(file)))
    assert "has limits and no token: every caller is accepted" in caplog.text
    assert _identify(authentication, tenant="victim").tenant == "victim"
    write(file, entry("late-token", "acme"), limits)
    assert _refusal(lambda: _identify(authentication, tenant="victim")).reason == "TOKEN_MISSING"
    assert _refusal(lambda: _identify(authentication, "wrong")).reason == "TOKEN_REFUSED"
    assert _identify(authentication, "late-token").tenant == "acme"
    write(file, limits)
    assert _refusal(lambda: _identify(authentication, "late-token")).reason == "TOKEN_REFUSED"


def test_callers_without_a_tenant_share_nothing_with_a_tenant(tmp_path: Path) -> None:
    file = write(tmp_path / "tenants.toml", entry("bad-token", "default"))
    with pytest.raises(ServeError, match="callers without a tenant: choose another name"):
        Authentication(SecurityOptions(tokens=str(file)))
    write(file, entry("service-token", "*"), "[tenants.default]\nstreams = 3")
    authentication = Authentication(SecurityOptions(tokens=str(file)))
    # decode names the namespace of callers without a tenant
    for tenant in ("", "default"):
        identity = _identify(authentication, "service-token", tenant)
        assert identity.tenant == ""
        assert identity.allowance.limits.streams == 3


def test_one_token_twice_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "t.toml", entry("token", "acme"), entry("token", "globex"))
    with pytest.raises(ServeError, match=r"tokens\[1\] is the same token as an earlier one"):
        Authentication(SecurityOptions(tokens=str(file)))


def test_the_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "tenants.toml", entry("first-token", "acme"))
    authentication = Authentication(SecurityOptions(tokens=str(file)))
    write(file, entry("second-token", "globex"))
    assert _identify(authentication, "second-token").tenant == "globex"
    assert _refusal(lambda: _identify(authentication, "first-token")).reason == "TOKEN_REFUSED"
    with caplog.at_level(logging.INFO):
        write(file, 'second-token = "', entry("first-token", "acme"))
        assert _identify(authentication, "second-token").tenant == "globex"
        file.unlink()
        assert _identify(authentication, "second-token").tenant == "globex"
        # no token is asked for again only by a restart
        write(file, "")
        assert _refusal(lambda: _identify(authentication)).reason == "TOKEN_MISSING"
    assert "cannot be used" in caplog.text
    assert "second-token" not in caplog.text


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


def _jwt(folder: Path, content: str, **options: Any) -> Authentication:
    file = write(folder / "keys", content)
    return Authentication(SecurityOptions(jwt_keys=str(file), **options))


@pytest.mark.parametrize("form", ["pem", "jwks"])
def test_a_signed_token_is_its_tenant(tmp_path: Path, issuer: Issuer, form: str) -> None:
    other = Issuer("key-2")
    jwks = json.dumps({"keys": [other.jwk(), issuer.jwk()]})
    authentication = _jwt(tmp_path, issuer.pem() if form == "pem" else jwks)
    assert _identify(authentication, issuer.sign(tenant="acme")).tenant == "acme"
    assert _refusal(lambda: _identify(authentication)).reason == "TOKEN_MISSING"
    expired = issuer.sign(-60, tenant="acme")
    assert _refusal(lambda: _identify(authentication, expired)).reason == "TOKEN_EXPIRED"
    for claims in ({}, {"tenant": ""}, {"tenant": 5}, {"tenant": "a b"}):
        token = issuer.sign(**claims)
        assert _refusal(lambda t=token: _identify(authentication, t)).reason == "TOKEN_REFUSED"
    # who signed with another key does not even learn that it has expired
    stranger = Issuer()
    for token in (stranger.sign(tenant="acme"), stranger.sign(-60, tenant="acme")):
        assert _refusal(lambda t=token: _identify(authentication, t)).reason == "TOKEN_REFUSED"
    endless = issuer.sign(tenant="acme", exp=None)
    assert _refusal(lambda: _identify(authentication, endless)).reason == "TOKEN_REFUSED"


def test_a_signed_token_acts_for_every_tenant_only_where_that_is_allowed(
    tmp_path: Path, issuer: Issuer
) -> None:
    token = issuer.sign(tenant="*")
    for tenant in ("", "victim"):
        error = _refusal(lambda t=tenant: _identify(_jwt(tmp_path, issuer.pem()), token, t))
        assert error.reason == "TOKEN_REFUSED"
    allowed = _jwt(tmp_path, issuer.pem(), jwt_any_tenant=True)
    assert _identify(allowed, token, "globex").tenant == "globex"
    reserved = issuer.sign(tenant="default")
    assert _refusal(lambda: _identify(allowed, reserved)).reason == "TOKEN_REFUSED"


def test_two_keys_of_one_id_and_short_keys_are_refused(tmp_path: Path, issuer: Issuer) -> None:
    other = Issuer(issuer.key_id)
    unnamed = [{**each.jwk(), "kid": None} for each in (issuer, other)]
    for keys in ([issuer.jwk(), other.jwk()], unnamed):
        with pytest.raises(ServeError, match="two keys have the same kid"):
            _jwt(tmp_path, json.dumps({"keys": keys}))
    for bits, served in ((1024, False), (2048, True)):
        public = rsa.generate_private_key(65537, bits).public_key()
        jwk = {**jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True), "kid": "r"}
        for content in (pem(public), json.dumps({"keys": [issuer.jwk(), jwk]})):
            if served:
                assert _jwt(tmp_path, content).required
                continue
            with pytest.raises(ServeError, match="1024 bits: the least is 2048"):
                _jwt(tmp_path, content)


def test_issuer_and_audience_must_be_those_asked_for(tmp_path: Path, issuer: Issuer) -> None:
    options = {"jwt_issuer": "https://issuer.example", "jwt_audience": "headwise"}
    authentication = _jwt(tmp_path, issuer.pem(), **options, jwt_tenant_claim="sub")
    right = {"iss": "https://issuer.example", "aud": ["headwise"], "sub": "acme"}
    assert _identify(authentication, issuer.sign(**right)).tenant == "acme"
    for wrong in ({"iss": "https://other.example"}, {"aud": "other"}, {"aud": None}, {"iss": None}):
        token = issuer.sign(**{**right, **wrong})
        assert _refusal(lambda t=token: _identify(authentication, t)).reason == "TOKEN_REFUSED"


def _part(value: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_an_unsigned_token_or_one_signed_with_the_public_key_is_refused(
    tmp_path: Path, issuer: Issuer
) -> None:
    claims = _part({"tenant": "acme", "exp": int(time.time() + 60)})
    authentication = _jwt(tmp_path, issuer.pem())
    for algorithm in ("none", "HS256"):
        signed = f"{_part({'alg': algorithm, 'kid': 'key-1'})}.{claims}"
        mac = hmac.new(issuer.pem().encode(), signed.encode(), "sha256").digest()
        signature = base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
        for token in (f"{signed}.", f"{signed}.{signature}"):
            error = _refusal(lambda t=token: _identify(authentication, t))
            assert error.reason == "TOKEN_REFUSED"


def test_keys_are_read_again(tmp_path: Path, issuer: Issuer) -> None:
    authentication = _jwt(tmp_path, issuer.pem())
    fresh = Issuer()
    write(tmp_path / "keys", fresh.pem())
    assert _identify(authentication, fresh.sign(tenant="acme")).tenant == "acme"
    assert _refusal(lambda: _identify(authentication, issuer.sign(tenant="acme")))


def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path, issuer: Issuer) -> None:
    private = json.dumps({"keys": [issuer.jwk(private=True)]})
    secret = json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0LXRleHQ", "kid": "1"}]})
    for content in ("", "secret-text", "{}", '{"keys": []}', '{"keys": [5]}', private, secret):
        with pytest.raises(ServeError, match="--jwt-keys") as caught:
            _jwt(tmp_path, content)
        assert "secret-text" not in str(caught.value)
    with pytest.raises(ServeError, match="No such file"):
        Authentication(SecurityOptions(tokens=str(tmp_path / "nowhere")))
    file = write(tmp_path / "t.toml", '[[tokens]]\nsha256 = "x"\ntenant = "a"')
    with pytest.raises(ServeError, match="64 hexadecimal"):
        Authentication(SecurityOptions(tokens=str(file)))
