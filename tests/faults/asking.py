"""A client that asks in the background, and remembers what it got."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headwise import Client, HeadwiseError, Result


class Asking:
    """A generation that a thread reads to its end; `with` cancels it at the end of the block."""

    def __init__(
        self, target: str, prompt: list[int], *, retries: bool = False, **options: Any
    ) -> None:
        self.tokens: list[int] = []
        self.error: HeadwiseError | None = None
        self.result: Result | None = None
        self._client = Client(target, retries=retries)
        options = {"policy": "full", "ignore_eos": True, **options}
        self._generation = self._client.generate(prompt, **options)
        self._began = time.monotonic()
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for delta in self._generation:
                self.tokens += delta.token_ids
            self.result = self._generation.result
        except HeadwiseError as error:
            self.error = error
        self._seconds = time.monotonic() - self._began

    def ended(self, within_seconds: float) -> float:
        """Wait for the end; returns the seconds the whole call took."""
        self._thread.join(within_seconds)
        assert not self._thread.is_alive(), f"no end of the call within {within_seconds} s"
        return self._seconds

    def cancel(self) -> None:
        self._generation.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()
        self._thread.join(10)
        self._client.close()


def prompt_of(tokens: int) -> list[int]:
    """Some prompt of so many tokens, no two of its beginnings alike."""
    return [2 + (7 * i + i // 400) % 500 for i in range(tokens)]


@contextlib.contextmanager
def client_process(
    target: str, prompt_tokens: int, max_tokens: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A client as a process of its own, until the block ends."""
    script = Path(__file__).with_name("asking_process.py")
    command = [sys.executable, str(script), target, str(prompt_tokens), str(max_tokens)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()
