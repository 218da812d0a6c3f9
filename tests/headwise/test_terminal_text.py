"""Control characters of an answer reach files and pipes, and no terminal."""

from __future__ import annotations

import sys

import pytest

from headwise.commands.terminal_text import for_output

_TEXT = "a\tb\n\x1b]0;title\x07\x9b31m\x7f\r\u00e9"


@pytest.mark.parametrize("terminal", [True, False])
def test_controls_are_replaced_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    replaced = "a\tb\n\ufffd]0;title\ufffd\ufffd31m\ufffd\ufffd\u00e9"
    assert for_output(_TEXT) == (replaced if terminal else _TEXT)
