"""A value that is read from files, and read again when they change."""

from __future__ import annotations

import logging
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger("headwise.files")

_Stamp = tuple[tuple[int, int, int] | None, ...]


class WatchedFiles(Generic[T]):
    """Reads at once, which may raise; later what cannot be read is logged, and the last good value
    stays. Safe to use from any thread.

    A look costs a stat per file. Links are followed, so that a Kubernetes volume, which swaps a
    link, is seen to change.
    """

    def __init__(self, paths: Sequence[pathlib.Path], read: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        # before reading: what changes meanwhile is read once more
        self._stamp = self._look()
        self._value = read()

    def current(self) -> T:
        """The value of the files as they are now."""
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._renew()
            return self._value

    def _look(self) -> _Stamp:
        return tuple(map(_stamp, self._paths))

    def _renew(self) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            self._value = self._read()
        except Exception as error:
            # an error's text may quote the file, so only its kind is told
            kind = type(error).__name__
            log.error("%s changed and cannot be used (%s); what was read before stays", names, kind)
        else:
            log.info("read %s again", names)


def _stamp(path: pathlib.Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
