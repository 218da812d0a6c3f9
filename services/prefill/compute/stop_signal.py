"""The signal that ends a computation, also while its thread waits for a turn."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future

from services.prefill.compute.prefiller import PrefillStopped


class StopSignal(threading.Event):
    """An event whose setting also ends the wait for a future."""

    def __init__(self) -> None:
        super().__init__()
        self._awaited: Future[None] | None = None

    def set(self) -> None:
        super().set()
        if self._awaited is not None:
            self._awaited.cancel()

    def wait_for(self, future: Future[None]) -> None:
        """Wait for the future. Raises `PrefillStopped` if this is set before it has a result."""
        self._awaited = future
        if self.is_set():
            # it was set before it knew the future
            future.cancel()
        try:
            future.result()
        except CancelledError:
            raise PrefillStopped from None
        finally:
            self._awaited = None
