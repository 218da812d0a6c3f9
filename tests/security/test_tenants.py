"""Another tenant's sessions, handles and keys look to a tenant as if they had never existed."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import grpc
import pytest

from headwise import Client, HeadwiseError, NotFound, Refused, SessionInfo, StoredCache
from headwise.connection import Connection
from headwise.errors import from_rpc_error
from headwise.v1 import store_pb2, store_pb2_grpc
from tests.observe import wait_until
from tests.security.conftest import FETCH_TOKENS, TOKENS, SecurePair

pytestmark = pytest.mark.processes

_DOCUMENT = "Nobody but its owner may read this document about a quixotic zanzibar. " * 3
_NO_SESSION = "0" * 32
_NO_KEY = "0" * 64
_KEEP_SECONDS = 120.0

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """All that an error tells who called."""

    kind: type[HeadwiseError]
    text: str
    reason: str
    metadata: dict[str, str]
    retry_after_seconds: float | None


def _told(call: Call) -> Told:
    with pytest.raises(HeadwiseError) as caught:
        call()
    error = caught.value
    return Told(type(error), str(error), error.reason, error.metadata, error.retry_after_seconds)


def _require_never_there(foreign: dict[str, Call], never: dict[str, Call]) -> None:
    """Each call with another's name tells exactly what the same call with no one's tells."""
    for name, call in foreign.items():
        told = _told(call)
        assert told == _told(never[name]), name
        assert told.kind is NotFound, name


@pytest.fixture
def acme(secure_pair: SecurePair) -> Iterator[Client]:
    """The client of the tenant that owns the caches."""
    with secure_pair.client(TOKENS["acme"]) as client:
        yield client


@pytest.fixture
def globex(secure_pair: SecurePair) -> Iterator[Client]:
    """Another tenant, who has learned the owner's names somehow."""
    with secure_pair.client(TOKENS["globex"]) as client:
        yield client


@pytest.fixture
def session(acme: Client) -> Iterator[SessionInfo]:
    options = {"max_tokens": 2, "ignore_eos": True, "session_ttl_seconds": _KEEP_SECONDS}
    session_id = acme.generate(_DOCUMENT, **options).result.session_id
    yield acme.sessions.describe(session_id)
    with contextlib.suppress(NotFound):
        acme.sessions.release(session_id)


@pytest.fixture
def stored(acme: Client) -> Iterator[StoredCache]:
    kept = acme.caches.keep(_DOCUMENT, policy="full", ttl_seconds=_KEEP_SECONDS)
    yield kept
    with contextlib.suppress(NotFound):
        acme.caches.release(kept.handle)


def _session_calls(client: Client, session_id: str) -> dict[str, Call]:
    return {
        "generate": lambda: client.generate("more", session_id=session_id).text(),
        "describe": lambda: client.sessions.describe(session_id),
        "fork": lambda: client.sessions.fork(session_id),
        "release": lambda: client.sessions.release(session_id),
    }


def _handle_calls(client: Client, handle: str) -> dict[str, Call]:
    return {
        "generate": lambda: client.generate("more", cache_handle=handle).text(),
        "describe": lambda: client.caches.describe(handle),
        "renew": lambda: client.caches.renew(handle, 1.0),
        "release": lambda: client.caches.release(handle),
    }


def test_another_tenants_session_does_not_exist(
    acme: Client, globex: Client, session: SessionInfo, secure_pair: SecurePair
) -> None:
    assert [one.session_id for one in acme.sessions.list()] == [session.session_id]
    assert globex.sessions.list() == []
    foreign = _session_calls(globex, session.session_id)
    _require_never_there(foreign, _session_calls(globex, _NO_SESSION))
    # nothing of that did anything to it
    assert acme.sessions.describe(session.session_id).tokens == session.tokens
    turn = acme.generate("more", session_id=session.session_id, max_tokens=1).result
    assert turn.session_id == session.session_id
    # while a turn runs on it, it is busy to its owner alone
    running = acme.generate("more", session_id=session.session_id, max_tokens=5000, ignore_eos=True)
    with running:
        deltas = iter(running)
        next(deltas)
        assert _told(lambda: acme.sessions.release(session.session_id)).reason == "SESSION_BUSY"
        _require_never_there(foreign, _session_calls(globex, _NO_SESSION))
    # and once it is gone, its owner alone is told that it was there. The same name of a tenant,
    # told by another kind of token, is the same tenant
    with secure_pair.client(secure_pair.issuer.sign(tenant="acme")) as signed:
        _release_when_idle(signed, session.session_id)
    assert _told(_session_calls(acme, session.session_id)["describe"]).reason == "SESSION_RELEASED"
    _require_never_there(foreign, _session_calls(globex, _NO_SESSION))


def _release_when_idle(client: Client, session_id: str) -> None:
    """A turn that was cancelled gives its session back a moment later."""

    def released() -> bool:
        try:
            client.sessions.release(session_id)
        except Refused:
            return False
        return True

    wait_until(released, 5, "an idle session")


def _answer_tokens(client: Client, handle: str) -> list[int]:
    generation = client.generate("Why?", cache_handle=handle, max_tokens=2, ignore_eos=True)
    return [token for delta in generation for token in delta.token_ids]


def test_another_tenants_handle_and_key_do_not_exist(
    acme: Client, globex: Client, stored: StoredCache
) -> None:
    before = _answer_tokens(acme, stored.handle)
    never = f"{_NO_KEY}.{_NO_SESSION}"
    _require_never_there(_handle_calls(globex, stored.handle), _handle_calls(globex, never))
    _require_never_there(_handle_calls(globex, stored.key), _handle_calls(globex, _NO_KEY))
    # the cache is resident in decode's pool, for its owner alone
    assert before
    assert _answer_tokens(acme, stored.handle) == before
    _require_never_there(_handle_calls(globex, stored.handle), _handle_calls(globex, never))
    # the lease is as long as before
    assert acme.caches.describe(stored.handle).expires_in_seconds > _KEEP_SECONDS / 2
    acme.caches.release(stored.handle)
    assert _told(lambda: acme.caches.describe(stored.handle)).reason == "LEASE_RELEASED"
    _require_never_there(_handle_calls(globex, stored.handle), _handle_calls(globex, never))


@dataclasses.dataclass(frozen=True, slots=True)
class Prefill:
    """Stored caches of prefill itself."""

    connection: Connection
    stub: store_pb2_grpc.CacheServiceStub

    def keep(self) -> store_pb2.KeepCacheResponse:
        request = store_pb2.KeepCacheRequest(text=_DOCUMENT, keep_for_seconds=_KEEP_SECONDS)
        request.policy.name = "full"
        answer: store_pb2.KeepCacheResponse = self.stub.KeepCache(
            request, timeout=30, metadata=self.connection.metadata()
        )
        return answer

    def fetch(self, handle: str, *, release: bool = False) -> int:
        """Messages of the cache."""
        request = store_pb2.FetchCacheRequest(handle=handle, release=release)
        call = self.stub.FetchCache(request, timeout=30, metadata=self.connection.metadata())
        try:
            return sum(1 for _ in call)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


@contextlib.contextmanager
def _prefill(pair: SecurePair, token: str, tenant: str = "") -> Iterator[Prefill]:
    connection = pair.prefill_connection(token, tenant)
    with connection.open() as channel:
        yield Prefill(connection, store_pb2_grpc.CacheServiceStub(channel))


def test_the_same_document_of_another_tenant_is_its_own(
    secure_pair: SecurePair, globex: Client, stored: StoredCache
) -> None:
    """Key and report of reuse do not reveal that another tenant has the document."""
    with _prefill(secure_pair, FETCH_TOKENS["globex"]) as prefill:
        first, again = prefill.keep(), prefill.keep()
    assert (first.reused, again.reused) == (False, True)
    assert first.cache.key == again.cache.key != stored.key
    for kept in (first, again):
        globex.caches.release(kept.cache.handle)


def test_a_cache_is_fetched_by_its_own_tenant_alone(
    secure_pair: SecurePair, acme: Client, stored: StoredCache
) -> None:
    never = {stored.handle: f"{_NO_KEY}.{_NO_SESSION}", stored.key: _NO_KEY}
    for token, tenant in ((FETCH_TOKENS["globex"], ""), (TOKENS["decode"], "globex")):
        with _prefill(secure_pair, token, tenant) as other:
            for name, release in itertools.product(never, (False, True)):
                told = _told(lambda p=other, n=name, r=release: p.fetch(n, release=r))
                assert told == _told(
                    lambda p=other, n=never[name], r=release: p.fetch(n, release=r)
                )
                assert told.kind is NotFound
    # its tenant may be named by nobody else
    with _prefill(secure_pair, FETCH_TOKENS["globex"], "acme") as posing:
        assert _told(lambda: posing.fetch(stored.handle)).reason == "TENANT_REFUSED"
    for token, tenant in ((FETCH_TOKENS["acme"], ""), (TOKENS["decode"], "acme")):
        with _prefill(secure_pair, token, tenant) as own:
            assert own.fetch(stored.handle) == own.fetch(stored.key) > 2
    assert acme.caches.describe(stored.handle).handle == stored.handle
