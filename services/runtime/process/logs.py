"""Log lines with a request id, as text or JSON. Never a prompt, a token or a key."""

from __future__ import annotations

import contextvars
import json
import logging
import sys
from typing import Any

import grpc

GRPC_LOGGER = "grpc._cython.cygrpc"

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


# one line holds a message, or a line of a traceback; what a stranger sends may be in either
MAX_MESSAGE = 2000
MAX_EXCEPTION = 8000


class _RequestId(logging.Filter):
    """Gives a record its request id, and its message on one line of bounded length."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        message = record.getMessage()
        if len(message) > MAX_MESSAGE or not message.isprintable():
            record.msg, record.args = _one_line(message), None
        return True


def _one_line(text: str) -> str:
    """Return the text without control characters, which could forge lines or reach a terminal."""
    cut = text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}… ({len(text)} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


class _BoundedExceptions(logging.Formatter):
    """Cuts tracebacks to their end, and each of their lines."""

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = map(_one_line, super().formatException(ei).splitlines())
        return "\n".join(lines)[-MAX_EXCEPTION:]


class _JsonFormatter(_BoundedExceptions):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class NoClosedCalls(logging.Filter):
    """Drops gRPC's report, with a traceback, that a status found its call closed by the client.

    The call has its own line, and nothing went wrong.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


class NoForeignBytes(logging.Filter):
    """Drops gRPC's report, with a traceback, of metadata that is not UTF-8.

    It quotes the bytes, which may be a token, and comes at each look at the metadata.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Invalid encoding on")


def configure_logs(level: str, form: str) -> None:
    """Send all log lines to standard error in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RequestId())
    handler.setFormatter(
        _JsonFormatter()
        if form == "json"
        else _BoundedExceptions("%(asctime)s %(levelname)-7s %(request_id)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for unwanted in (NoClosedCalls(), NoForeignBytes()):
        logging.getLogger(GRPC_LOGGER).addFilter(unwanted)
    # its notices about GGUF and generation defaults do not concern the operator
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # at DEBUG it writes the bytecode of every kernel, which takes minutes
    logging.getLogger("numba").setLevel(logging.WARNING)


def progress_bars_fit() -> bool:
    """Whether libraries may draw progress bars between log lines: on a terminal, not in JSON."""
    handlers = logging.getLogger().handlers
    as_json = any(isinstance(handler.formatter, _JsonFormatter) for handler in handlers)
    return sys.stderr.isatty() and not as_json
