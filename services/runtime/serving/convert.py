"""Between protobuf and plain values, at the services' edge and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import transformers
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

import headwise
from headwise.errors import InvalidRequest
from headwise.v1 import cache_pb2, prefill_pb2
from kvstore.cache import (
    FORMAT_VERSIONS,
    Fingerprint,
    LayerShape,
    ModelFingerprint,
)
from kvstore.errors import CorruptCache, InvalidParameter
from kvstore.policies import Policy, known_policies, known_presets, parse_policy
from kvstore.row_codecs import MODEL_ROWS, ElementCodec, RowCodec
from kvstore.wire import Frame, FrameKind
from services.runtime.model.served_model import ServedModel

_MODEL_FIELDS = ("model_id", "revision", "weights_digest", "tokenizer_digest", "dtype")


def model_to_proto(model: ModelFingerprint) -> cache_pb2.ModelFingerprint:
    return cache_pb2.ModelFingerprint(**{name: getattr(model, name) for name in _MODEL_FIELDS})


def model_from_proto(model: cache_pb2.ModelFingerprint) -> ModelFingerprint:
    return ModelFingerprint(**{name: getattr(model, name) for name in _MODEL_FIELDS})


def fill_frame(message: cache_pb2.CacheFrame, frame: Frame) -> None:
    """In place: a message that is put into another is copied once more."""
    message.kind = cast(cache_pb2.FrameKind, int(frame.kind))
    message.layer = frame.layer
    message.offset = frame.offset
    message.payload = frame.payload
    message.checksum = frame.checksum


def frame_from_proto(frame: cache_pb2.CacheFrame) -> Frame:
    """Raises `CorruptCache` for a kind this version does not know."""
    try:
        kind = FrameKind(frame.kind)
    except ValueError as error:
        raise CorruptCache(f"frame of unknown kind {frame.kind}") from error
    return Frame(kind, frame.layer, frame.offset, frame.payload, frame.checksum)


def parse_prefill_response(message: bytes) -> prefill_pb2.PrefillResponse:
    """Raises `CorruptCache` where the bytes are no message: DATA_LOSS like any other damage."""
    try:
        return prefill_pb2.PrefillResponse.FromString(message)
    except DecodeError as error:
        raise CorruptCache("a message of the cache stream does not parse") from error


def policy_from_proto(policy: cache_pb2.Policy, default: str) -> Policy:
    """Raises `UnknownPolicy` or `InvalidParameter`."""
    try:
        parameters = MessageToDict(policy.parameters)
    except ValueError as error:
        # JSON knows no NaN and no infinity
        raise InvalidParameter("policy.parameters", "numbers must be finite") from error
    return parse_policy(policy.name or default, parameters)


def allowed_codecs(spelling: str) -> tuple[ElementCodec, ...]:
    """The codecs of a comma-separated option. Raises `InvalidParameter`."""
    named = {RowCodec.parse(name.strip()).keys for name in spelling.split(",") if name.strip()}
    return tuple(c for c in ElementCodec if c in named or c is ElementCodec.MODEL)


def codec_from_proto(codec: cache_pb2.RowCodec, allowed: Sequence[ElementCodec]) -> RowCodec:
    """Raises `InvalidParameter` for a codec nobody knows, `InvalidRequest` for one not allowed."""
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
    """Of a cache that is there already."""
    return codec_from_proto(codec, tuple(ElementCodec))


def codec_to_proto(codec: RowCodec) -> cache_pb2.RowCodec:
    return cache_pb2.RowCodec(keys=codec.keys, values=codec.values)


def recorded_policy(fingerprint: Fingerprint) -> cache_pb2.Policy:
    """The policy a cache was made with, as its fingerprint records it."""
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
