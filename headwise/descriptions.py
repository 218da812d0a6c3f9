"""Description of a decode service, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict

from headwise.v1 import cache_pb2, decode_pb2


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFingerprint:
    """Identity of a model; the digests are SHA-256 in lower-case hex."""

    model_id: str
    revision: str
    weights_digest: str
    tokenizer_digest: str
    dtype: str


@dataclasses.dataclass(frozen=True, slots=True)
class LayerShape:
    """Shape of one attention layer; `sliding_window` in tokens, 0 if it attends to all tokens."""

    kv_heads: int
    query_heads: int
    head_size: int
    sliding_window: int


@dataclasses.dataclass(frozen=True, slots=True)
class ModelDescription:
    """The model that a service serves; `context_tokens` is its longest sequence."""

    fingerprint: ModelFingerprint
    architecture: str
    context_tokens: int
    vocabulary_size: int
    layers: tuple[LayerShape, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyDescription:
    """A policy with its parameters' defaults; `preset_of` is set for a preset of a policy."""

    name: str
    defaults: Mapping[str, object]
    preset_of: str


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a decode service: tokens, counts, bytes, seconds; see `DecodeLimits` in proto/."""

    max_sequence_tokens: int
    default_max_tokens: int
    max_sequences: int
    pool_bytes: int
    max_queued: int
    max_sessions: int
    max_session_seconds: float
    max_contexts: int
    codecs: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Versions:
    """Versions of a service's software, and the cache formats that it reads and writes."""

    headwise: str
    torch: str
    transformers: str
    cache_formats: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ServiceDescription:
    """Model, policies, limits and versions of a decode service."""

    model: ModelDescription
    policies: tuple[PolicyDescription, ...]
    default_policy: str
    limits: Limits
    versions: Versions


def description_from_proto(
    response: decode_pb2.DecodeServiceDescribeResponse,
) -> ServiceDescription:
    """Convert the answer of Describe."""
    model = response.model
    return ServiceDescription(
        model=ModelDescription(
            fingerprint=ModelFingerprint(**_fields(ModelFingerprint, model.fingerprint)),
            architecture=model.architecture,
            context_tokens=model.context_tokens,
            vocabulary_size=model.vocabulary_size,
            layers=tuple(LayerShape(**_fields(LayerShape, layer)) for layer in model.layers),
        ),
        policies=tuple(_policy(policy) for policy in response.policies),
        default_policy=response.default_policy,
        limits=Limits(**_fields(Limits, response.limits)),
        versions=Versions(**_fields(Versions, response.versions)),
    )


def _policy(policy: cache_pb2.PolicyDescription) -> PolicyDescription:
    return PolicyDescription(policy.name, MessageToDict(policy.defaults), policy.preset_of)


def _fields(kind: type[Any], message: Any) -> dict[str, Any]:
    """Return the message's fields by the names of `kind`'s; repeated fields become tuples."""
    values = {field.name: getattr(message, field.name) for field in dataclasses.fields(kind)}
    return {
        name: value if isinstance(value, str | int | float) else tuple(value)
        for name, value in values.items()
    }
