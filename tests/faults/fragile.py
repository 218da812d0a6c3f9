"""A pair whose processes tests may end: what has ended is started again at the same port."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

from services.demo.processes import Service, running_service


class FragilePair:
    """Starts each process when it is asked for and not running."""

    def __init__(
        self, model: str, prefill_arguments: tuple[str, ...], decode_arguments: tuple[str, ...]
    ) -> None:
        self._arguments = {
            "prefill": ("--model", model, *prefill_arguments),
            "decode": ("--model", model, *decode_arguments),
        }
        self._services: dict[str, Service] = {}
        self._stack = contextlib.ExitStack()

    @property
    def prefill(self) -> Service:
        return self._running("prefill")

    @property
    def decode(self) -> Service:
        return self._running("decode", "--prefill", self._at("prefill").target)

    def pair(self) -> tuple[Service, Service]:
        """The two services, running."""
        return self.prefill, self.decode

    def _at(self, name: str) -> Service:
        """The service, whether it still runs or not; where it is does not change."""
        return self._services.get(name) or self._running(name)

    def _running(self, name: str, *more: str) -> Service:
        service = self._services.get(name)
        if service is None or service.process.poll() is not None:
            port = ("--port", str(service.port)) if service else ()
            arguments = (*self._arguments[name], *port, *more)
            service = self._stack.enter_context(running_service(name, arguments))
            self._services[name] = service
        return service

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
