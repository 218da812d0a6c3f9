"""Running services: what they are, and whether they fit this version and each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headwise.connection import Connection, Metadata
from headwise.errors import HeadwiseError, NotSupported, from_rpc_error
from headwise.proxies import proxy_advice
from headwise.v1 import cache_pb2, decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc
from kvstore.errors import FingerprintMismatch
from services.doctor.finding import Finding, Level
from services.runtime.process.advice import advice_for
from services.runtime.serving.convert import describe_versions, model_from_proto

_TIMEOUT_SECONDS = 6.0

_Described = decode_pb2.DecodeServiceDescribeResponse | prefill_pb2.PrefillServiceDescribeResponse


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """A service of ours that answered; `kind` is decode or prefill."""

    target: str
    kind: str
    model: cache_pb2.ModelFingerprint
    versions: cache_pb2.Versions


def visit(connection: Connection) -> tuple[Peer | None, list[Finding]]:
    """Ask one service how it is and what it serves."""
    target = connection.target
    proxied = proxy_advice(target)
    found = [Finding(target, Level.WARNING, "reached through a proxy", proxied)] if proxied else []
    try:
        with connection.open() as channel:
            metadata = connection.metadata()
            serving = _is_serving(channel, metadata)
            kind, described = _describe(channel, metadata)
    except grpc.RpcError as error:
        return None, [*found, _failure(target, from_rpc_error(error))]
    peer = Peer(target, kind, described.model.fingerprint, described.versions)
    return peer, [*found, _health(peer, serving), *_own_version(peer)]


def _is_serving(channel: grpc.Channel, metadata: Metadata) -> bool:
    # grpc_health's stub has no annotations
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest()
    answer = stub.Check(request, timeout=_TIMEOUT_SECONDS, metadata=metadata)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _describe(channel: grpc.Channel, metadata: Metadata) -> tuple[str, _Described]:
    options = {"timeout": _TIMEOUT_SECONDS, "metadata": metadata}
    try:
        decode = decode_pb2_grpc.DecodeServiceStub(channel)
        return "decode", decode.Describe(decode_pb2.DecodeServiceDescribeRequest(), **options)
    except grpc.RpcError as error:
        if not isinstance(from_rpc_error(error), NotSupported):
            raise
    prefill = prefill_pb2_grpc.PrefillServiceStub(channel)
    return "prefill", prefill.Describe(prefill_pb2.PrefillServiceDescribeRequest(), **options)


def _failure(target: str, error: HeadwiseError) -> Finding:
    return Finding(target, Level.PROBLEM, str(error), advice_for(error))


def _health(peer: Peer, serving: bool) -> Finding:
    found = f"{peer.kind} of {peer.model.model_id}, {peer.model.dtype}"
    if serving:
        return Finding(peer.target, Level.OK, f"{found}, serving")
    advice = "It drains, or waits for its prefill; its log says which."
    return Finding(peer.target, Level.PROBLEM, f"{found}, not serving", advice)


def _own_version(peer: Peer) -> Iterator[Finding]:
    ours = describe_versions()
    theirs = peer.versions
    formats = sorted(theirs.cache_formats)
    found = f"headwise {theirs.headwise}, torch {theirs.torch}, cache formats {formats}"
    if theirs.headwise == ours.headwise:
        yield Finding(peer.target, Level.OK, found)
    else:
        advice = f"This is {ours.headwise}; upgrade one of them when it suits."
        yield Finding(peer.target, Level.WARNING, found, advice)


def compare(peers: Sequence[Peer]) -> Iterator[Finding]:
    """Each later peer against the first: model, cache formats, versions."""
    for other in peers[1:]:
        yield from _compare_two(peers[0], other)


def _compare_two(first: Peer, other: Peer) -> Iterator[Finding]:
    subject = f"{first.target} and {other.target}"
    try:
        model_from_proto(first.model).require_same(model_from_proto(other.model))
        yield Finding(subject, Level.OK, "same weights, tokenizer and dtype")
    except FingerprintMismatch as error:
        advice = "Start both with the same --model, --revision and --dtype."
        yield Finding(subject, Level.PROBLEM, str(error), advice)
    ours, theirs = set(first.versions.cache_formats), set(other.versions.cache_formats)
    if ours != theirs:
        level = Level.WARNING if ours & theirs else Level.PROBLEM
        found = f"cache formats {sorted(ours)} and {sorted(theirs)}"
        yield Finding(subject, level, found, "Upgrade the older one.")
    for name in ("headwise", "torch", "transformers"):
        one, another = getattr(first.versions, name), getattr(other.versions, name)
        if one != another:
            found = f"{name} {one} and {another}"
            yield Finding(subject, Level.WARNING, found, "Upgrade the older one.")
