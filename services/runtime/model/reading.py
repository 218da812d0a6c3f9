"""Errors of the libraries that read a model's files, as one typed error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from kvstore.errors import KVStoreError
from services.runtime.model.model_errors import ModelRefused
from services.runtime.process.serve_error import ServeError, first_line

_CODE = "it needs Python code of its own folder (auto_map), which is never run here"

_log = logging.getLogger("headwise.model")


@contextmanager
def readable(subject: str, advice: str, *, system_errors: bool = False) -> Iterator[None]:
    """Raise `ModelRefused` where a library cannot use `subject`, a part of a model.

    `OSError` passes without `system_errors`, because the caller knows which path it concerns. The
    libraries raise errors of many kinds for a damaged file. Their tracebacks tell an operator
    nothing, and are logged at DEBUG alone.
    """
    try:
        yield
    except (ServeError, KVStoreError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and not system_errors:
            raise
        _log.debug("%s", subject, exc_info=True)
        if "trust_remote_code" in str(error):
            raise ModelRefused(_CODE) from error
        raise ModelRefused(f"{subject} cannot be used: {first_line(error)}; {advice}") from error
