"""The signal that pages of the pool came free."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

Handler = Callable[[], object]


class FreedPages:
    """Runs one handler on the event loop after any thread reports freed pages.

    `call_on_loop` schedules a function on the event loop and raises `RuntimeError` once the loop is
    closed.
    """

    def __init__(self, call_on_loop: Callable[[Handler], None]) -> None:
        self._call_on_loop = call_on_loop
        self._handler: Handler | None = None

    def connect(self, handler: Handler) -> None:
        """Set the handler; it is called with the event loop's thread."""
        self._handler = handler

    def notify(self) -> None:
        """Report that pages came free. From any thread."""
        if self._handler is not None:
            # the loop may be closed by the time the engine ends
            with contextlib.suppress(RuntimeError):
                self._call_on_loop(self._handler)
