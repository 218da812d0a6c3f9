"""A service in the foreground, which reports in one line why it cannot start."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import click

from services.decode.options import DecodeOptions
from services.prefill.options import PrefillOptions
from services.runtime.process.allocator import keep_freed_memory
from services.runtime.process.configuration import build
from services.runtime.process.logs import configure_logs

log = logging.getLogger("headwise.server")

Options = TypeVar("Options", PrefillOptions, DecodeOptions)


def run_process(
    serve: Callable[[Options], Awaitable[None]], kind: type[Options], values: Mapping[str, object]
) -> None:
    """Configure logs and serve until a signal stops the process."""
    from kvstore.errors import KVStoreError
    from services.runtime.process.serve_error import ServeError
    from services.runtime.process.trace_export import exported_spans

    keep_freed_memory()
    options = build(kind, values)
    configure_logs(options.server.log_level, options.server.log_format)

    async def run() -> None:
        with exported_spans(f"headwise-{click.get_current_context().info_name}", os.environ):
            await serve(options)

    try:
        asyncio.run(run())
    except (ServeError, KVStoreError) as error:
        raise click.ClickException(str(error)) from error
    except Exception as error:
        # a fault of a service that ran: its log is where the operator looks
        log.exception("the service ends after an error")
        raise click.ClickException(f"the service ends after an error: {error}") from error
