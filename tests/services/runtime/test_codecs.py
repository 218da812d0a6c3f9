"""The codecs that a server allows, and conversion of a request's codec."""

from __future__ import annotations

import pytest

from headwise.errors import InvalidRequest
from headwise.v1.cache_pb2 import RowCodec as RowCodecProto
from kvstore.errors import InvalidParameter
from kvstore.row_codecs import ElementCodec
from services.runtime.model.model_options import allowed_codecs
from services.runtime.serving.convert import codec_from_proto, codec_to_proto
from services.runtime.startup.check_list import codec_problems

EVERY = tuple(ElementCodec)


def test_model_rows_are_always_allowed() -> None:
    assert allowed_codecs("") == (ElementCodec.MODEL,)
    assert allowed_codecs("int4, int8") == ("model", "int8", "int4")


def test_an_unknown_codec_in_the_options_stops_the_start() -> None:
    [problem] = codec_problems("int8,int2")
    assert "--codecs" in problem.found
    assert "'int2'" in problem.found
    assert list(codec_problems("int8,int4")) == []


@pytest.mark.parametrize(
    ("keys", "values", "name"),
    [
        ("", "", "model"),
        ("int8", "", "int8"),
        ("", "int4", "model/int4"),
        ("fp8", "int4", "fp8/int4"),
    ],
)
def test_missing_codec_names_have_defaults(keys: str, values: str, name: str) -> None:
    codec = codec_from_proto(RowCodecProto(keys=keys, values=values), EVERY)
    assert codec.name == name
    assert codec_from_proto(codec_to_proto(codec), EVERY) == codec


def test_unknown_and_disallowed_codecs_are_refused() -> None:
    allowed = allowed_codecs("int8")
    with pytest.raises(InvalidRequest) as refusal:
        codec_from_proto(RowCodecProto(keys="int8", values="fp8"), allowed)
    assert refusal.value.reason == "CODEC_NOT_ALLOWED"
    for keys in ("int2", "int8/int4", "INT8"):
        with pytest.raises(InvalidParameter):
            codec_from_proto(RowCodecProto(keys=keys), EVERY)
