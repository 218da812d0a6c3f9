"""The recorded streams: today's code must read them and write them again to the byte.

They may change only together with their format's version; to record them anew then, run
`python -m tests.kvstore.wire.test_golden` in the root of the repository.
"""

from __future__ import annotations

import pathlib

import pytest

from kvstore.cache import FORMAT_VERSIONS
from kvstore.errors import CorruptCache, FingerprintMismatch, LimitExceeded
from kvstore.wire.reference import decode_cache
from tests.kvstore.wire.caches import encode, same, two_layers
from tests.kvstore.wire.receiving import receive
from tests.kvstore.wire.records import dump, parse

FOLDER = pathlib.Path(__file__).parent / "golden"
GOLDEN = FOLDER / "two_layers.bin"
# of the second format: keys int8, values int4
CODED = FOLDER / "two_layers_coded.bin"
# of the third: log-weights
WEIGHTED = FOLDER / "two_layers_weighted.bin"
STREAMS = pytest.mark.parametrize(
    "golden", [GOLDEN, CODED, WEIGHTED], ids=["model", "coded", "weighted"]
)

# small enough that sections of the recorded cache need several frames
MAX_PAYLOAD_BYTES = 96

REFUSALS = (CorruptCache, LimitExceeded, FingerprintMismatch)


def record(codec: str, weighted: bool = False) -> bytes:
    """The stream as the code at hand writes it."""
    return dump(encode(*two_layers(codec=codec, weighted=weighted), MAX_PAYLOAD_BYTES))


@STREAMS
def test_the_recorded_stream_is_still_what_is_written(golden: pathlib.Path) -> None:
    recorded = parse(golden.read_bytes())
    cache = decode_cache(recorded)
    assert dump(encode(cache, two_layers()[1], MAX_PAYLOAD_BYTES)) == golden.read_bytes()


@STREAMS
def test_the_recorded_stream_is_still_read(golden: pathlib.Path) -> None:
    frames = parse(golden.read_bytes())
    assert same(receive(frames), decode_cache(frames))
    assert receive(frames).next_position == 40


def test_each_format_has_a_recorded_stream() -> None:
    streams = [parse(golden.read_bytes()) for golden in (GOLDEN, CODED, WEIGHTED)]
    versions = [decode_cache(frames).fingerprint.format_version for frames in streams]
    assert versions == list(FORMAT_VERSIONS)


@pytest.mark.parametrize("flipped", [0x01, 0x80, 0xFF])
@STREAMS
def test_every_changed_byte_is_noticed(golden: pathlib.Path, flipped: int) -> None:
    stream = golden.read_bytes()
    for at in range(len(stream)):
        changed = bytearray(stream)
        changed[at] ^= flipped
        with pytest.raises(REFUSALS):
            receive(parse(bytes(changed)))


@STREAMS
def test_every_truncation_is_noticed(golden: pathlib.Path) -> None:
    stream = golden.read_bytes()
    for length in range(len(stream)):
        with pytest.raises(CorruptCache):
            receive(parse(stream[:length]))


if __name__ == "__main__":
    GOLDEN.write_bytes(record("model"))
    CODED.write_bytes(record("int8/int4"))
    WEIGHTED.write_bytes(record("model", weighted=True))
