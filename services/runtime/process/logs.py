"""Log lines with a request id, as text or JSON. Never a prompt, a token or a key."""

from __future__ import annotations

import contextvars
import json
import logging
import sys

import grpc

GRPC_LOGGER = "grpc._cython.cygrpc"

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


class _RequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class _JsonFormatter(logging.Formatter):
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


def configure_logs(level: str, form: str) -> None:
    """Send all log lines to standard error in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RequestId())
    handler.setFormatter(
        _JsonFormatter()
        if form == "json"
        else logging.Formatter("%(asctime)s %(levelname)-7s %(request_id)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger(GRPC_LOGGER).addFilter(NoClosedCalls())
    # its notices about GGUF and generation defaults do not concern the operator
    logging.getLogger("transformers").setLevel(logging.ERROR)


def progress_bars_fit() -> bool:
    """Whether libraries may draw progress bars between log lines: on a terminal, not in JSON."""
    handlers = logging.getLogger().handlers
    as_json = any(isinstance(handler.formatter, _JsonFormatter) for handler in handlers)
    return sys.stderr.isatty() and not as_json
