"""Conversion between protobuf messages and values of kvstore, used by the services alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
import transformers
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct

import headwise
from headwise.errors import InvalidRequest
from headwise.v1 import cache_pb2
from kvstore.cache import (
    FORMAT_VERSIONS,
    Fingerprint,
    LayerShape,
    ModelFingerprint,
)
from kvstore.errors import InvalidParameter
from kvstore.policies import Policy, known_policies, known_presets, parse_policy
from kvstore.row_codecs import MODEL_ROWS, ElementCodec, RowCodec
from services.runtime.model.served_model import ServedModel

_MODEL_FIELDS = ("model_id", "revision", "weights_digest", "tokenizer_digest", "dtype")


def model_to_proto(model: ModelFingerprint) -> cache_pb2.ModelFingerprint:
    return cache_pb2.ModelFingerprint(**{name: getattr(model, name) for name in _MODEL_FIELDS})


def model_from_proto(model: cache_pb2.ModelFingerprint) -> ModelFingerprint:
    return ModelFingerprint(**{name: getattr(model, name) for name in _MODEL_FIELDS})


def policy_from_proto(policy: cache_pb2.Policy, default: str) -> Policy:
    """Return the named or default policy. Raises `UnknownPolicy` or `InvalidParameter`."""
    try:
        parameters = MessageToDict(policy.parameters)
    except ValueError as error:
        # JSON has no NaN and no infinity
        raise InvalidParameter("policy.parameters", "numbers must be finite") from error
    return parse_policy(policy.name or default, parameters)


def codec_from_proto(codec: cache_pb2.RowCodec, allowed: Sequence[ElementCodec]) -> RowCodec:
    """Raises `InvalidParameter` for an unknown codec, `InvalidRequest` for one not allowed."""
    keys = codec.keys or MODEL_ROWS.name
    parsed = RowCodec.parse(f"{keys}/{codec.values or keys}")
    for name in (parsed.keys, parsed.values):
        if name not in allowed:
            raise InvalidRequest(
                f"codec: {name} is not allowed here; allowed: {', '.join(allowed)}",
                "CODEC_NOT_ALLOWED",
                {"field": "codec"},
            )
    return parsed


def recorded_codec(codec: cache_pb2.RowCodec) -> RowCodec:
    """The codec of a cache that exists already; every codec is allowed."""
    return codec_from_proto(codec, tuple(ElementCodec))


def codec_to_proto(codec: RowCodec) -> cache_pb2.RowCodec:
    return cache_pb2.RowCodec(keys=codec.keys, values=codec.values)


def recorded_policy(fingerprint: Fingerprint) -> cache_pb2.Policy:
    """The policy of a cache, from its fingerprint."""
    parameters = json.loads(fingerprint.policy_parameters)
    return cache_pb2.Policy(name=fingerprint.policy, parameters=_struct(parameters))


def describe_policies() -> list[cache_pb2.PolicyDescription]:
    """Every policy, then every preset."""
    policies = [
        cache_pb2.PolicyDescription(name=name, defaults=_struct(defaults))
        for name, defaults in known_policies()
    ]
    presets = [
        cache_pb2.PolicyDescription(
            name=name, defaults=_struct(policy.parameters()), preset_of=policy.name
        )
        for name, policy in known_presets()
    ]
    return policies + presets


def describe_model(served: ServedModel) -> cache_pb2.ModelDescription:
    return cache_pb2.ModelDescription(
        fingerprint=model_to_proto(served.fingerprint),
        architecture=served.model.config.model_type,
        context_tokens=served.context_tokens,
        vocabulary_size=served.vocabulary_size,
        layers=[_shape_to_proto(shape) for shape in served.shapes],
    )


def describe_versions() -> cache_pb2.Versions:
    return cache_pb2.Versions(
        headwise=headwise.__version__,
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        cache_formats=FORMAT_VERSIONS,
    )


def _shape_to_proto(shape: LayerShape) -> cache_pb2.LayerShape:
    return cache_pb2.LayerShape(
        kv_heads=shape.kv_heads,
        query_heads=shape.query_heads,
        head_size=shape.head_size,
        sliding_window=shape.sliding_window or 0,
    )


def _struct(values: Mapping[str, object]) -> Struct:
    return ParseDict(dict(values), Struct())
