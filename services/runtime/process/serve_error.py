"""The error of a process that cannot serve."""

from __future__ import annotations


class ServeError(Exception):
    """The process cannot serve; the message says why and what to do."""
