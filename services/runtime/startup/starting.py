"""The start of a process, which ends in readiness or in one line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from kvstore.errors import KVStoreError
from services.runtime.process.serve_error import ServeError, first_line

log = logging.getLogger("headwise.server")

_NO_MEMORY = ("can't allocate memory", "out of memory", "Unable to allocate")


@contextlib.contextmanager
def starting(memory_advice: str) -> Iterator[None]:
    """Raise `ServeError` for whatever stops a start, also for what no check foresaw.

    `memory_advice` names the options that take memory. A traceback is logged at DEBUG.
    """
    try:
        yield
    except (ServeError, KVStoreError):
        raise
    except Exception as error:
        log.debug("the start failed", exc_info=True)
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            raise ServeError(f"the memory does not suffice. {memory_advice}") from error
        raise ServeError(
            f"the start failed: {first_line(error)}. --log-level DEBUG shows where."
        ) from error
