"""Text of a model or a service on a terminal, which must not be steered by it."""

from __future__ import annotations

import re
import sys

# the control characters C0, DEL and C1, but newline and tab
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_REPLACEMENT = "\ufffd"


def without_controls(text: str) -> str:
    """Return the text with U+FFFD for each control character but newline and tab."""
    return _CONTROLS.sub(_REPLACEMENT, text)


def for_output(text: str) -> str:
    """Return the text without control characters if standard output is a terminal.

    Files and pipes get the answer as it is.
    """
    # a process whose standard output is closed has none
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    return without_controls(text) if on_terminal else text
