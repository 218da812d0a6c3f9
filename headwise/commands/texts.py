"""Texts that are piped or read from files: UTF-8, with a byte order mark or without."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

import click

STANDARD_INPUT = "-"
# the longer marks first, because that of UTF-32 begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_text(source: str) -> str:
    """The text of a file, or of standard input for "-". Raises `click.ClickException`."""
    name = "standard input" if source == STANDARD_INPUT else source
    content = _content(source, name)
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            advice = f"convert it with `iconv -f {encoding} -t UTF-8`"
            raise click.ClickException(f"{name} is {encoding}, not UTF-8: {advice}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is not valid"
        raise click.ClickException(f"{name} is no UTF-8 text: {place}") from error


def require_text(name: str, text: str) -> str:
    """Return a text of the command line. Raises `click.UsageError` if it is not valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise click.UsageError(f"{name} is not valid UTF-8 at character {error.start}") from error
    return text


def _content(source: str, name: str) -> bytes:
    if source == STANDARD_INPUT:
        # None where standard input is closed
        if sys.stdin is None:
            raise click.ClickException("standard input is closed: pipe the text, or give a file")
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise click.ClickException(f"{name}: {error.strerror}") from error
