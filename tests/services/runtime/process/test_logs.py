"""Log lines carry the request id, as text and as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from services.runtime.process.logs import configure_logs, request_id


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """The root logger as it was, without the handler of the test."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    # taken off, or `basicConfig(force=True)` would close what pytest needs
    root.handlers = []
    token = request_id.set("abc123")
    yield
    request_id.reset(token)
    root.handlers, root.level = before


def test_a_text_line_has_level_request_and_logger(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("INFO", "text")
    logging.getLogger("headwise.x").warning("told %d", 3)
    line = capsys.readouterr().err
    assert "WARNING abc123 headwise.x: told 3" in line


def test_a_json_line_parses_and_has_the_exception(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("INFO", "json")
    try:
        raise ArithmeticError("two\nlines")
    except ArithmeticError:
        logging.getLogger("headwise.x").exception("failed")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry["request_id"] == "abc123"
    assert (entry["level"], entry["logger"], entry["message"]) == ("ERROR", "headwise.x", "failed")
    assert "ArithmeticError" in entry["exception"]


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("WARNING", "text")
    logging.getLogger("headwise.x").info("quiet")
    assert capsys.readouterr().err == ""
