"""A prefill process that answers every request with one recorded stream."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

from tests.faults.fake_prefill import FakePrefill


@contextlib.contextmanager
def replayed_prefill(description: bytes, messages: Sequence[bytes]) -> Iterator[str]:
    """Serve until the block ends; yields the target. `description` is the answer of Describe."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, description, tuple(messages)))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.close()
        process.join()


def _serve(pipe: Connection, description: bytes, messages: Sequence[bytes]) -> None:
    with FakePrefill(description) as fake:
        fake.messages = messages
        pipe.send(fake.target)
        # nothing is ever sent: the other end closes when it is over
        with contextlib.suppress(EOFError):
            pipe.recv()
