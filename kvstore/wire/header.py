"""The header as JSON: whose cache, how many tokens, the shape of each layer."""

from __future__ import annotations

import dataclasses

from kvstore.cache import (
    CODED_FORMAT_VERSION,
    FORMAT_VERSIONS,
    WEIGHTED_FORMAT_VERSION,
    Fingerprint,
    LayerShape,
    ModelFingerprint,
    canonical_json,
)
from kvstore.errors import CorruptCache, FingerprintMismatch, InvalidParameter
from kvstore.row_codecs import MODEL_ROWS, ElementCodec, RowCodec
from kvstore.wire.strict_json import ObjectReader

# positions are int32, so nothing that counts tokens can be larger
MAX_COUNT = 2**31 - 1
# far above any model; keeps every product of sizes within 64 bits
MAX_WIDTH = 65_536


@dataclasses.dataclass(frozen=True, slots=True)
class CacheHeader:
    """Facts of a cache that precede its first layer; `tokens` is its `next_position`."""

    fingerprint: Fingerprint
    shapes: tuple[LayerShape, ...]
    tokens: int

    @property
    def codec(self) -> RowCodec:
        return RowCodec.parse(self.fingerprint.codec)


def encode_header(header: CacheHeader) -> bytes:
    """The header frame's payload. Raises `InvalidParameter` for what a reader would refuse."""
    layers = [dataclasses.asdict(shape) for shape in header.shapes]
    fields = {**identity_fields(header.fingerprint, header.tokens), "layers": layers}
    payload = canonical_json(fields).encode()
    try:
        parse_header(payload)
    except (CorruptCache, FingerprintMismatch) as error:
        raise InvalidParameter("header", str(error)) from error
    return payload


def parse_header(payload: bytes) -> CacheHeader:
    """Raises `CorruptCache`, or `FingerprintMismatch` where the format is not ours."""
    reader = ObjectReader.parse(payload, "header")
    fingerprint, tokens = read_identity(reader)
    shapes = tuple(_read_shape(layer) for layer in reader.objects("layers"))
    reader.close()
    if not shapes:
        raise CorruptCache("header has no layers")
    return CacheHeader(fingerprint, shapes, tokens)


def identity_fields(fingerprint: Fingerprint, tokens: int) -> dict[str, object]:
    """The part of the header that does not depend on how the layers are stored."""
    fields = dataclasses.asdict(fingerprint)
    # a reader looks at the version before anything else, so it stands at the top
    version, codec = fields.pop("format_version"), RowCodec.parse(fields.pop("codec"))
    identity = {"format_version": version, "fingerprint": fields, "tokens": tokens}
    if codec != MODEL_ROWS:
        identity["codec"] = {"keys": codec.keys.value, "values": codec.values.value}
    return identity


def read_identity(reader: ObjectReader) -> tuple[Fingerprint, int]:
    """The fingerprint and the number of tokens; checks the format version first."""
    version = reader.integer("format_version", 0, MAX_COUNT)
    if version not in FORMAT_VERSIONS:
        known = f"one of {', '.join(map(str, FORMAT_VERSIONS))}"
        raise FingerprintMismatch("format_version", known, str(version))
    fingerprint = _read_fingerprint(reader.member("fingerprint"))
    weighted = version == WEIGHTED_FORMAT_VERSION
    if version == CODED_FORMAT_VERSION or (weighted and "codec" in reader.names()):
        codec = _read_codec(reader.member("codec"))
    else:
        codec = MODEL_ROWS
    return fingerprint.coded_as(codec, weighted=weighted), reader.integer("tokens", 0, MAX_COUNT)


def _read_codec(reader: ObjectReader) -> RowCodec:
    keys, values = reader.text("keys"), reader.text("values")
    reader.close()
    try:
        codec = RowCodec(ElementCodec(keys), ElementCodec(values))
    except ValueError as error:
        raise CorruptCache("header names an unknown codec") from error
    if codec == MODEL_ROWS:
        raise CorruptCache("rows as the model computes them have no codec")
    return codec


def _read_fingerprint(reader: ObjectReader) -> Fingerprint:
    model = reader.member("model")
    fingerprint = Fingerprint(
        model=ModelFingerprint(
            model_id=model.text("model_id"),
            revision=model.text("revision"),
            weights_digest=model.text("weights_digest"),
            tokenizer_digest=model.text("tokenizer_digest"),
            dtype=model.text("dtype"),
        ),
        token_digest=reader.text("token_digest"),
        policy=reader.text("policy"),
        policy_parameters=reader.text("policy_parameters"),
    )
    model.close()
    reader.close()
    return fingerprint


def _read_shape(reader: ObjectReader) -> LayerShape:
    kv_heads = reader.integer("kv_heads", 1, MAX_WIDTH)
    query_heads = reader.integer("query_heads", kv_heads, MAX_WIDTH)
    if query_heads % kv_heads:
        raise CorruptCache(f"{query_heads} query heads cannot share {kv_heads} KV heads")
    head_size = reader.integer("head_size", 1, MAX_WIDTH)
    window = reader.optional_integer("sliding_window", 1, MAX_COUNT)
    reader.close()
    return LayerShape(kv_heads, query_heads, head_size, window)
