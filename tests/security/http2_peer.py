"""An HTTP/2 client by hand, which keeps windows shut, sends any bytes and ends calls when it likes.

gRPC's own client opens its windows by itself and checks what it sends, so it cannot be hostile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

import hpack

Header = tuple[str | bytes, str | bytes]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_END_STREAM, _END_HEADERS, _ACK, _PADDED, _PRIORITY = 0x1, 0x4, 0x1, 0x8, 0x20
_INITIAL_WINDOW_SIZE = 4
_FRAME_BYTES = 16_384
_WHOLE_WINDOW = 1 << 30


class _Kind(enum.IntEnum):
    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8


@dataclasses.dataclass(slots=True)
class Answer:
    """The arrived part of an answer: headers and trailers together, bytes, and whether it ended."""

    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        """The gRPC status of an ended call, or None."""
        return int(self.headers["grpc-status"]) if "grpc-status" in self.headers else None


class Http2Peer:
    """One connection. With `window=0` the server can send headers, and no bytes of an answer."""

    def __init__(self, port: int, *, window: int = _WHOLE_WINDOW) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._changed = threading.Condition()
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._next_stream = 1
        self._answers: dict[int, Answer] = {}
        # bytes that the server takes: of the connection (0) and of each call
        self._room = {0: 65_535}
        self._first_room = 65_535
        self.closed = False
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
        self._socket.sendall(_PREFACE + _frame(_Kind.SETTINGS, 0, 0, settings))
        if window:
            self._send(_Kind.WINDOW_UPDATE, 0, 0, struct.pack(">I", _WHOLE_WINDOW))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(self, path: str, message: bytes, headers: Sequence[Header] = ()) -> int:
        """Begin a call with its whole request and return the number of its stream."""
        stream = self.begin(path, headers)
        self.send(stream, struct.pack(">BI", 0, len(message)) + message, end=True)
        return stream

    def begin(self, path: str, headers: Sequence[Header] = ()) -> int:
        """Begin a call without any part of its request."""
        fixed: tuple[Header, ...] = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
        with self._changed:
            stream, self._next_stream = self._next_stream, self._next_stream + 2
            self._answers[stream] = Answer()
            self._room[stream] = self._first_room
            block = self._encoder.encode([*fixed, *headers], huffman=False)
            self._send(_Kind.HEADERS, _END_HEADERS, stream, block)
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False, seconds: float = 20.0) -> int:
        """Send as much as the server takes within the time, and return the number of bytes."""
        sent, deadline = 0, time.monotonic() + seconds
        while True:
            with self._changed:
                room = min(self._room[0], self._room[stream], _FRAME_BYTES, len(data) - sent)
                if (room <= 0 and sent < len(data)) or self.closed:
                    left = deadline - time.monotonic()
                    if self.closed or left <= 0 or self._answers[stream].ended:
                        return sent
                    self._changed.wait(min(left, 0.5))
                    continue
                self._room[0] -= room
                self._room[stream] -= room
                last = sent + room == len(data)
                flags = _END_STREAM if end and last else 0
                self._send(_Kind.DATA, flags, stream, data[sent : sent + room])
            sent += room
            if last:
                return sent

    def answer(self, stream: int) -> Answer:
        """Return the answer as far as it has come."""
        return self._answers[stream]

    def wait(self, stream: int, seconds: float) -> Answer:
        """Return the whole answer. Fails the test if the call has not ended by then."""
        with self._changed:
            ended = self._changed.wait_for(
                lambda: self._answers[stream].ended or self.closed, seconds
            )
        assert ended, f"no end within {seconds} s: {self._answers[stream]}"
        return self._answers[stream]

    def forget(self, stream: int) -> None:
        """Drop an answer, so that many calls take no memory."""
        with self._changed:
            self._answers.pop(stream, None)
            self._room.pop(stream, None)

    def close(self) -> None:
        """Close the connection without a word."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(10)
        self._socket.close()

    def _send(self, kind: _Kind, flags: int, stream: int, payload: bytes) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(_frame(kind, flags, stream, payload))

    def _read(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                head = self._exactly(9)
                length = int.from_bytes(head[:3], "big")
                stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
                payload = self._exactly(length)
                with self._changed:
                    self._take(head[3], head[4], stream, payload)
                    self._changed.notify_all()
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        answer = self._answers.get(stream) or Answer()
        match kind:
            case _Kind.HEADERS:
                for name, value in self._decoder.decode(_block(flags, payload), raw=True):
                    answer.headers[name.decode()] = value.decode("latin-1")
                answer.ended |= bool(flags & _END_STREAM)
            case _Kind.DATA:
                answer.data += payload
                answer.ended |= bool(flags & _END_STREAM)
            case _Kind.RST_STREAM:
                answer.reset, answer.ended = int.from_bytes(payload, "big"), True
            case _Kind.SETTINGS if not flags & _ACK:
                self._take_settings(payload)
                self._send(_Kind.SETTINGS, _ACK, 0, b"")
            case _Kind.PING if not flags & _ACK:
                self._send(_Kind.PING, _ACK, 0, payload)
            case _Kind.WINDOW_UPDATE if stream in self._room:
                self._room[stream] += int.from_bytes(payload, "big")

    def _take_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == _INITIAL_WINDOW_SIZE:
                for stream in self._room.keys() - {0}:
                    self._room[stream] += value - self._first_room
                self._first_room = value

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._socket.recv(size - len(parts))
            except TimeoutError:
                continue
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)


@contextlib.contextmanager
def http2_peer(port: int, *, window: int = _WHOLE_WINDOW) -> Iterator[Http2Peer]:
    """A connection until the block ends."""
    peer = Http2Peer(port, window=window)
    try:
        yield peer
    finally:
        peer.close()


def _frame(kind: _Kind, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def _block(flags: int, payload: bytes) -> bytes:
    """Return the header block without padding and priority."""
    padding = 0
    if flags & _PADDED:
        padding, payload = payload[0], payload[1:]
    if flags & _PRIORITY:
        payload = payload[5:]
    return payload[: len(payload) - padding]
