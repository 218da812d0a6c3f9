"""The recorded stream: today's code must read it and write it again to the byte.

It may change only together with `FORMAT_VERSION`; to record it anew then, run
`python -m tests.kvstore.wire.test_golden` in the root of the repository.
"""

from __future__ import annotations

import pathlib

import pytest

from kvstore.errors import CorruptCache, FingerprintMismatch, LimitExceeded
from kvstore.wire.reference import decode_cache
from tests.kvstore.wire.caches import encode, same, two_layers
from tests.kvstore.wire.receiving import receive
from tests.kvstore.wire.records import dump, parse

GOLDEN = pathlib.Path(__file__).parent / "golden" / "two_layers.bin"

# small enough that sections of the recorded cache need several frames
MAX_PAYLOAD_BYTES = 96

REFUSALS = (CorruptCache, LimitExceeded, FingerprintMismatch)


def record() -> bytes:
    """The stream as the code at hand writes it."""
    return dump(encode(*two_layers(), MAX_PAYLOAD_BYTES))


def test_the_recorded_stream_is_still_what_is_written() -> None:
    recorded = parse(GOLDEN.read_bytes())
    cache = decode_cache(recorded)
    assert dump(encode(cache, two_layers()[1], MAX_PAYLOAD_BYTES)) == GOLDEN.read_bytes()


def test_the_recorded_stream_is_still_read() -> None:
    frames = parse(GOLDEN.read_bytes())
    assert same(receive(frames), decode_cache(frames))
    assert receive(frames).next_position == 40


@pytest.mark.parametrize("flipped", [0x01, 0x80, 0xFF])
def test_every_changed_byte_is_noticed(flipped: int) -> None:
    stream = GOLDEN.read_bytes()
    for at in range(len(stream)):
        changed = bytearray(stream)
        changed[at] ^= flipped
        with pytest.raises(REFUSALS):
            receive(parse(bytes(changed)))


def test_every_truncation_is_noticed() -> None:
    stream = GOLDEN.read_bytes()
    for length in range(len(stream)):
        with pytest.raises(CorruptCache):
            receive(parse(stream[:length]))


if __name__ == "__main__":
    GOLDEN.write_bytes(record())
