"""The error of a process that cannot serve."""

from __future__ import annotations

# libraries quote whole files in some messages
_MOST_CHARACTERS = 300


class ServeError(Exception):
    """The process cannot serve; the message says why and what to do."""


def first_line(error: Exception) -> str:
    """The beginning of an error's text as one short line, with the error's kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    # some libraries name the cause below a line that ends in a colon
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return f"{text[:_MOST_CHARACTERS].rstrip('.:')} ({type(error).__name__})"
