"""Streams that no honest writer sends."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.cache import CompactCache, LayerShape
from kvstore.errors import CorruptCache, FingerprintMismatch, InvalidParameter, LimitExceeded
from kvstore.row_codecs import RowCodec
from kvstore.wire import CacheDecoder, CacheEncoder, CacheHeader, Frame, FrameKind, WireLimits
from tests.kvstore.wire.caches import encode, fingerprint, same, two_layers
from tests.kvstore.wire.receiving import receive

CACHE, SHAPES = two_layers()
FRAMES = encode(CACHE, SHAPES, 96)
MODEL = fingerprint().model

# what the reader may raise, and nothing else
REFUSALS = (CorruptCache, LimitExceeded, FingerprintMismatch)


def altered(payload: bytes, path: tuple[str | int, ...], value: object) -> bytes:
    """The JSON payload with the member at `path` replaced, or removed if the value is `...`."""
    root = json.loads(payload)
    at = root
    for step in path[:-1]:
        at = at[step]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(root).encode()


def with_payload(kind: FrameKind, payload: bytes) -> list[Frame]:
    """The stream with the first frame of a kind replaced, its own checksum right."""
    at = next(i for i, f in enumerate(FRAMES) if f.kind == kind)
    frame = FRAMES[at]
    return [*FRAMES[:at], Frame.of(kind, payload, frame.layer, frame.offset), *FRAMES[at + 1 :]]


def resealed(frames: list[Frame]) -> list[Frame]:
    """The stream with a trailer that agrees with what is in it, as a hostile writer sends."""
    body = [f for f in frames if f.kind not in (FrameKind.HEADER, FrameKind.TRAILER)]
    digest = hashlib.sha256(frames[0].payload)
    for f in body:
        digest.update(struct.pack("<IIQQI", f.layer, f.kind, f.offset, len(f.payload), f.checksum))
    totals = {
        "frames": len(body),
        "payload_bytes": sum(len(f.payload) for f in body),
        "rows": sum(layer.rows for layer in CACHE.layers),
        "sha256": digest.hexdigest(),
    }
    return [frames[0], *body, Frame.of(FrameKind.TRAILER, json.dumps(totals).encode())]


def test_a_resealed_stream_is_otherwise_accepted() -> None:
    assert same(receive(resealed(FRAMES)), CACHE)


def test_a_reader_that_misses_a_frame_notices() -> None:
    for at in range(len(FRAMES)):
        with pytest.raises(CorruptCache):
            receive(FRAMES[:at] + FRAMES[at + 1 :])


def test_a_reader_that_sees_a_frame_twice_notices() -> None:
    for at, frame in enumerate(FRAMES):
        with pytest.raises(CorruptCache):
            receive([*FRAMES[:at], frame, *FRAMES[at:]])


def test_a_reader_that_sees_neighbours_swapped_notices() -> None:
    for at in range(len(FRAMES) - 1):
        swapped = [*FRAMES[:at], FRAMES[at + 1], FRAMES[at], *FRAMES[at + 2 :]]
        with pytest.raises(CorruptCache):
            receive(swapped)


def test_a_stream_is_not_complete_before_its_trailer() -> None:
    decoder = CacheDecoder(WireLimits())
    for frame in FRAMES[:-1]:
        decoder.feed(frame)
        assert not decoder.complete
    with pytest.raises(CorruptCache):
        decoder.finish()


def test_a_refused_stream_stays_refused() -> None:
    decoder = CacheDecoder(WireLimits())
    decoder.feed(FRAMES[0])
    with pytest.raises(CorruptCache):
        decoder.feed(dataclasses.replace(FRAMES[1], checksum=FRAMES[1].checksum ^ 1))
    with pytest.raises(CorruptCache):
        decoder.feed(FRAMES[1])


def test_a_frame_after_the_trailer_takes_completeness_away() -> None:
    decoder = CacheDecoder(WireLimits())
    for frame in FRAMES:
        decoder.feed(frame)
    assert decoder.complete
    with pytest.raises(CorruptCache):
        decoder.feed(FRAMES[-1])
    assert not decoder.complete


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tokens",), ...),
        (("tokens",), -1),
        (("tokens",), 39.0),
        (("tokens",), True),
        (("tokens",), 2**31),
        (("unknown",), 1),
        (("format_version",), True),
        (("format_version",), 2),
        (("codec",), {"keys": "int8", "values": "int8"}),
        (("fingerprint", "policy"), 1),
        (("fingerprint", "policy"), "\ud800"),
        (("fingerprint", "format_version"), 1),
        (("fingerprint", "model", "dtype"), "float64"),
        (("fingerprint", "model", "extra"), ""),
        (("fingerprint",), []),
        (("layers",), []),
        (("layers",), {}),
        (("layers", 0, "kv_heads"), 0),
        (("layers", 0, "query_heads"), 7),
        (("layers", 0, "head_size"), 65_537),
        (("layers", 0, "sliding_window"), 0),
        (("layers", 0, "sliding_window"), ...),
    ],
)
def test_a_header_with_a_bad_member_is_refused(path: tuple[str | int, ...], value: object) -> None:
    with pytest.raises(CorruptCache):
        receive([Frame.of(FrameKind.HEADER, altered(FRAMES[0].payload, path, value))])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rows",), [6, 0]),
        (("rows", 0), 41),
        (("rows", 0), -1),
        (("rows",), [6, 0, 9, 0]),
        (("recovered",), [1.0]),
        (("recovered", 0), -0.5),
        (("recovered", 0), math.nan),
        (("recovered", 0), math.inf),
        (("recovered", 0), "1"),
        (("rules",), []),
        (("rules", 0), None),
        (("rules", 0, "sinks"), -1),
        (("rules", 0, "window"), 2**31),
        (("rules", 0, "full"), 0),
        (("rules", 0, "protected"), 4),
        (("rules", 0, "budget_ratio"), 1.5),
        (("rules", 0, "budget_ratio"), 10**400),
        (("rules", 0, "score_decay"), -0.1),
        (("rules", 0, "score_update"), "max"),
        (("rules", 0, "score_update"), ...),
        (("rules", 0, "weight"), 1),
    ],
)
def test_an_index_with_a_bad_member_is_refused(path: tuple[str | int, ...], value: object) -> None:
    payload = altered(FRAMES[1].payload, path, value)
    with pytest.raises(CorruptCache):
        receive(resealed(with_payload(FrameKind.INDEX, payload)))


@pytest.mark.parametrize(
    "payload",
    [
        b'{"tokens":1,"tokens":1}',
        b"[" * 200_000,
        b"\xff\xfe",
        b"",
        b"null",
        b'{"a":1}'.ljust((1 << 20) + 1),
        '{"format_version":1}'.encode("utf-16"),
        b'{"format_version":' + b"1" * 5_000 + b"}",
        b'{"format_version":1e999}',
    ],
)
def test_a_header_that_is_not_strict_json_is_refused(payload: bytes) -> None:
    with pytest.raises(CorruptCache):
        receive([Frame.of(FrameKind.HEADER, payload)])


@pytest.mark.parametrize("member", ["frames", "payload_bytes", "rows", "sha256"])
def test_a_trailer_that_disagrees_is_refused(member: str) -> None:
    value = json.loads(FRAMES[-1].payload)[member]
    other = value + 1 if isinstance(value, int) else "0" * 64
    payload = altered(FRAMES[-1].payload, (member,), other)
    with pytest.raises(CorruptCache, match=member):
        receive(with_payload(FrameKind.TRAILER, payload))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("positions", torch.tensor([0, 1, 2, 3, 4, 40, *range(9)], dtype=torch.int32)),
        ("positions", torch.tensor([-1, 1, 2, 3, 4, 5, *range(9)], dtype=torch.int32)),
        ("positions", torch.tensor([0, 1, 2, 2, 4, 5, *range(9)], dtype=torch.int32)),
        ("positions", torch.tensor([0, 1, 2, 3, 4, 5, 1, 0, *range(2, 9)], dtype=torch.int32)),
        ("scores", torch.full((9,), math.nan)),
        ("scores", torch.full((9,), math.inf)),
        ("flags", torch.full((9,), 4, dtype=torch.uint8)),
    ],
)
def test_contents_that_no_cache_has_are_refused(field: str, value: torch.Tensor) -> None:
    layer = dataclasses.replace(CACHE.layers[0], **{field: value})
    cache = dataclasses.replace(CACHE, layers=(layer, CACHE.layers[1]))
    with pytest.raises(CorruptCache):
        receive(encode(cache, SHAPES))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("codec",), ...),
        (("codec",), "int8"),
        (("codec", "keys"), "int2"),
        (("codec", "values"), ...),
        (("codec", "scales"), "f32"),
        (("codec",), {"keys": "model", "values": "model"}),
        (("format_version",), 1),
    ],
)
def test_a_coded_header_with_a_bad_codec_is_refused(
    path: tuple[str | int, ...], value: object
) -> None:
    header = encode(*two_layers(codec="int8/int4"))[0].payload
    with pytest.raises(CorruptCache):
        receive([Frame.of(FrameKind.HEADER, altered(header, path, value))])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("codec",), {"keys": "model", "values": "model"}),
        (("codec",), {"keys": "int8"}),
        (("codec",), None),
        (("format_version",), 1),
    ],
)
def test_a_weighted_header_with_a_bad_codec_is_refused(
    path: tuple[str | int, ...], value: object
) -> None:
    header = encode(*two_layers(codec="int8", weighted=True))[0].payload
    CacheDecoder(WireLimits()).feed(Frame.of(FrameKind.HEADER, header))
    with pytest.raises(CorruptCache):
        CacheDecoder(WireLimits()).feed(Frame.of(FrameKind.HEADER, altered(header, path, value)))


@pytest.mark.parametrize("codec", ["model", "int8"])
def test_log_weights_are_of_the_third_format_alone(codec: str) -> None:
    cache, shapes = two_layers(codec=codec, weighted=True)
    frames = encode(cache, shapes)
    assert same(receive(frames), cache)
    older = cache.fingerprint.coded_as(RowCodec.parse(codec))
    header = CacheHeader(older, shapes, cache.next_position)
    with pytest.raises(InvalidParameter, match="unknown members"):
        CacheEncoder(header).layer(0, cache.layers[0])
    decoder = CacheDecoder(WireLimits())
    decoder.feed(CacheEncoder(header).header())
    with pytest.raises(CorruptCache, match="unknown members"):
        decoder.feed(frames[1])


def test_another_codec_than_was_asked_for_is_refused_by_name() -> None:
    cache, shapes = two_layers(codec="int8")
    decoder = CacheDecoder(WireLimits(), expected_codec=RowCodec.parse("int4"))
    with pytest.raises(FingerprintMismatch) as caught:
        decoder.feed(encode(cache, shapes)[0])
    assert (caught.value.field, caught.value.theirs) == ("codec", "int8")


@pytest.mark.parametrize("field", ["weights_digest", "tokenizer_digest", "dtype"])
def test_another_models_cache_is_refused_by_name(field: str) -> None:
    ours = dataclasses.replace(MODEL, **{field: "other"})
    with pytest.raises(FingerprintMismatch) as caught:
        receive(FRAMES, model=ours)
    assert caught.value.field == field


def test_another_format_is_refused_by_name_whatever_else_the_header_holds() -> None:
    with pytest.raises(FingerprintMismatch) as caught:
        receive([Frame.of(FrameKind.HEADER, b'{"format_version":9,"tensors":[]}')])
    assert (caught.value.field, caught.value.theirs) == ("format_version", "9")


@pytest.mark.parametrize(
    ("shapes", "field"),
    [
        (SHAPES[:1], "layers"),
        ((SHAPES[0], LayerShape(2, 2, 8)), "layers[1].sliding_window"),
        ((LayerShape(3, 9, 4), SHAPES[1]), "layers[0].query_heads"),
    ],
)
def test_another_models_shapes_are_refused_by_name(
    shapes: tuple[LayerShape, ...], field: str
) -> None:
    assert same(receive(FRAMES, model=MODEL, shapes=SHAPES), CACHE)
    with pytest.raises(FingerprintMismatch) as caught:
        receive(FRAMES, shapes=shapes)
    assert caught.value.field == field


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


def leaves(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of every member, at any depth."""
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [p for k, v in inner for p in [(*path, k), *leaves(v, (*path, k))]]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_replaced_member_is_read_right_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from((FrameKind.HEADER, FrameKind.INDEX, FrameKind.TRAILER)))
    original = next(f for f in FRAMES if f.kind == kind).payload
    path = data.draw(st.sampled_from(leaves(json.loads(original))))
    frames = with_payload(kind, altered(original, path, data.draw(JSON)))
    frames = frames if kind == FrameKind.TRAILER else resealed(frames)
    try:
        cache = receive(frames, model=MODEL)
    except REFUSALS:
        return
    assert_written_as(cache, frames)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, len(FRAMES) - 1),
    st.sampled_from(("kind", "layer", "offset", "checksum", "payload")),
    st.data(),
)
def test_any_replaced_field_is_noticed(at: int, field: str, data: st.DataObject) -> None:
    old = getattr(FRAMES[at], field)
    other = st.binary(max_size=120) if field == "payload" else st.integers(-(2**64), 2**64)
    new = data.draw(other.filter(lambda value: value != old))
    frames = list(FRAMES)
    frames[at] = dataclasses.replace(FRAMES[at], **{field: new})
    with pytest.raises(REFUSALS):
        receive(frames)


def assert_written_as(cache: CompactCache, frames: list[Frame]) -> None:
    """The cache says what the frames say: written again, every JSON member is equal."""
    shapes = tuple(LayerShape(**layer) for layer in json.loads(frames[0].payload)["layers"])
    for ours, theirs in zip(encode(cache, shapes, 96)[:-1], frames[:-1], strict=True):
        assert (ours.kind, ours.layer, ours.offset) == (theirs.kind, theirs.layer, theirs.offset)
        if ours.kind in (FrameKind.HEADER, FrameKind.INDEX):
            assert json.loads(ours.payload) == json.loads(theirs.payload)
        else:
            assert ours.payload == theirs.payload
