"""The description of a service holds every field of the message, as plain values."""

from __future__ import annotations

import dataclasses

from google.protobuf.json_format import MessageToDict

from headwise.descriptions import description_from_proto
from headwise.v1 import cache_pb2, decode_pb2


def _response() -> decode_pb2.DecodeServiceDescribeResponse:
    policy = cache_pb2.PolicyDescription(name="small", preset_of="lookback")
    policy.defaults.update({"budget": 0.15})
    return decode_pb2.DecodeServiceDescribeResponse(
        model=cache_pb2.ModelDescription(
            fingerprint=cache_pb2.ModelFingerprint(
                model_id="m", revision="r", weights_digest="w", tokenizer_digest="t", dtype="d"
            ),
            architecture="llama",
            context_tokens=1,
            vocabulary_size=2,
            layers=[cache_pb2.LayerShape(kv_heads=3, query_heads=4, head_size=5, sliding_window=6)],
        ),
        policies=[policy],
        default_policy="small",
        limits=decode_pb2.DecodeLimits(
            max_sequence_tokens=7,
            default_max_tokens=8,
            max_sequences=9,
            pool_bytes=10,
            max_queued=11,
            max_sessions=12,
            max_session_seconds=13.5,
            max_contexts=14,
            codecs=["model", "int8"],
        ),
        versions=cache_pb2.Versions(
            headwise="1", torch="2", transformers="3", cache_formats=[1, 2, 3]
        ),
    )


def _plain(value: object) -> object:
    """Tuples as lists, so that the two forms can be compared."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def test_every_field_of_the_message_is_in_the_description() -> None:
    message = MessageToDict(_response(), preserving_proto_field_name=True)
    message["limits"]["pool_bytes"] = int(message["limits"]["pool_bytes"])
    assert _plain(dataclasses.asdict(description_from_proto(_response()))) == message
