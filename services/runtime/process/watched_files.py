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
    """A value that is read at construction, which may raise, and again after the files change.

    A later failure to read is logged, and the last good value stays. Safe to use from any thread.
    A check costs one `stat` per file. Links are followed, because a Kubernetes volume changes its
    files by replacing a link.
    """

    def __init__(self, paths: Sequence[pathlib.Path], read: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        # taken before reading, so that a change during the read causes another one
        self._stamp = self._stamps()
        self._value = read()

    def current(self) -> T:
        """Return the value of the files in their present state."""
        with self._lock:
            stamp = self._stamps()
            if stamp != self._stamp:
                self._stamp = stamp
                self._renew()
            return self._value

    def _stamps(self) -> _Stamp:
        return tuple(map(_stamp, self._paths))

    def _renew(self) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            self._value = self._read()
        except Exception as error:
            # an error's text may quote the file, so only its class is logged
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
