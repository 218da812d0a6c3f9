"""The format once more, slow and obvious: the oracle of the tests, used nowhere else.

Written from docs/wire-format.md, sharing only `Frame` with the real codec. Trusts its input.
"""

from __future__ import annotations

import hashlib
import json
import struct

import torch

from kvstore.cache import CompactCache, Fingerprint, LayerShape, ModelFingerprint, RaggedLayer
from kvstore.row_codecs import KeyValueLayout, RowCodec
from kvstore.rules import RetentionRule, ScoreUpdate, TokenClass
from kvstore.wire.frames import Frame, FrameKind

SECTIONS = (
    (FrameKind.KEYS, "keys"),
    (FrameKind.VALUES, "values"),
    (FrameKind.POSITIONS, "positions"),
    (FrameKind.SCORES, "scores"),
    (FrameKind.FLAGS, "flags"),
    (FrameKind.LOG_WEIGHTS, "log_weights"),
)


def encode_cache(
    cache: CompactCache, shapes: tuple[LayerShape, ...], max_payload_bytes: int = 1024 * 1024
) -> list[Frame]:
    """All frames of a cache."""
    header = _frame(FrameKind.HEADER, 0, 0, _json(_header(cache, shapes)))
    body = []
    for number, layer in enumerate(cache.layers):
        body.append(_frame(FrameKind.INDEX, number, 0, _json(_index(layer))))
        for kind, name in SECTIONS:
            raw = _raw(getattr(layer, name))
            for offset in range(0, len(raw), max_payload_bytes):
                piece = raw[offset : offset + max_payload_bytes]
                body.append(_frame(kind, number, offset, piece))
    return [header, *body, _trailer(cache, header, body)]


def decode_cache(frames: list[Frame]) -> CompactCache:
    """The cache in a well-formed list of frames."""
    header = json.loads(frames[0].payload)
    identity = header["fingerprint"]
    fingerprint = Fingerprint(
        ModelFingerprint(**identity["model"]),
        identity["token_digest"],
        identity["policy"],
        identity["policy_parameters"],
        header["format_version"],
        _codec_name(header.get("codec", {"keys": "model", "values": "model"})),
    )
    layers = []
    for number, shape in enumerate(header["layers"]):
        own = [f for f in frames[1:-1] if f.layer == number]
        layers.append(_layer(own, shape["head_size"], fingerprint))
    return CompactCache(fingerprint, tuple(layers), header["tokens"])


def _layer(frames: list[Frame], head_size: int, fingerprint: Fingerprint) -> RaggedLayer:
    index = json.loads(frames[0].payload)
    offsets = [0]
    for rows in index["rows"]:
        offsets.append(offsets[-1] + rows)
    rules = []
    for fields in index["rules"]:
        fields["protected"] = TokenClass(fields["protected"])
        fields["score_update"] = ScoreUpdate(fields["score_update"])
        rules.append(RetentionRule(**fields))
    dtype = getattr(torch, fingerprint.model.dtype)
    layout = KeyValueLayout(RowCodec.parse(fingerprint.codec), head_size, dtype)
    coded = fingerprint.codec != "model"
    keys, values = (
        _tensor(frames, kind, dtype if name == "model" else torch.uint8).reshape(
            -1, head_size if name == "model" else _row_bytes(name, head_size)
        )
        for kind, name in (
            (FrameKind.KEYS, layout.codec.keys),
            (FrameKind.VALUES, layout.codec.values),
        )
    )
    return RaggedLayer(
        keys=keys,
        values=values,
        positions=_tensor(frames, FrameKind.POSITIONS, torch.int32),
        head_offsets=tuple(offsets),
        rules=tuple(rules),
        attention_coverage=tuple(index["recovered"]),
        scores=_tensor(frames, FrameKind.SCORES, torch.float32),
        flags=_tensor(frames, FrameKind.FLAGS, torch.uint8),
        log_weights=_tensor(frames, FrameKind.LOG_WEIGHTS, torch.float32),
        weighted=tuple(index.get("weighted", ())),
        layout=layout if coded else None,
    )


def _row_bytes(codec: str, head_size: int) -> int:
    return {"fp8": head_size + 2, "int8": head_size + 2, "int4": (head_size + 1) // 2 + 4}[codec]


def _codec_name(codec: dict[str, str]) -> str:
    keys, values = codec["keys"], codec["values"]
    return keys if keys == values else f"{keys}/{values}"


def _header(cache: CompactCache, shapes: tuple[LayerShape, ...]) -> dict[str, object]:
    identity, model = cache.fingerprint, cache.fingerprint.model
    keys, _, values = identity.codec.partition("/")
    codec = {"keys": keys, "values": values or keys}
    return {
        **({} if identity.codec == "model" else {"codec": codec}),
        "format_version": identity.format_version,
        "fingerprint": {
            "model": {name: getattr(model, name) for name in model.__slots__},
            "token_digest": identity.token_digest,
            "policy": identity.policy,
            "policy_parameters": identity.policy_parameters,
        },
        "tokens": cache.next_position,
        "layers": [{name: getattr(s, name) for name in s.__slots__} for s in shapes],
    }


def _index(layer: RaggedLayer) -> dict[str, object]:
    rules = [{name: getattr(rule, name) for name in rule.__slots__} for rule in layer.rules]
    rows = [head.rows for head in layer.heads()]
    weighted = {"weighted": list(layer.weighted)} if layer.weighted else {}
    return {"rows": rows, "rules": rules, "recovered": list(layer.attention_coverage), **weighted}


def _trailer(cache: CompactCache, header: Frame, body: list[Frame]) -> Frame:
    hashed = header.payload
    for f in body:
        hashed += struct.pack("<IIQQI", f.layer, f.kind, f.offset, len(f.payload), f.checksum)
    totals = {
        "frames": len(body),
        "payload_bytes": sum(len(f.payload) for f in body),
        "rows": sum(layer.rows for layer in cache.layers),
        "sha256": hashlib.sha256(hashed).hexdigest(),
    }
    return _frame(FrameKind.TRAILER, 0, 0, _json(totals))


def _frame(kind: FrameKind, layer: int, offset: int, payload: bytes) -> Frame:
    return Frame(kind, layer, offset, payload, _crc32c(payload))


def _crc32c(payload: bytes) -> int:
    """Bit by bit, reflected polynomial 0x82F63B78."""
    crc = 0xFFFFFFFF
    for byte in payload:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _json(value: dict[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("utf-8")


def _raw(tensor: torch.Tensor) -> bytes:
    if tensor.numel() == 0:
        return b""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


def _tensor(frames: list[Frame], kind: FrameKind, dtype: torch.dtype) -> torch.Tensor:
    raw = b"".join(f.payload for f in frames if f.kind == kind)
    return torch.tensor(list(raw), dtype=torch.uint8).view(dtype)
