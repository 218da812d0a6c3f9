"""The text the demo asks about."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

DOCUMENT_TOKENS = 1500

# a chapter of the language reference that ships with every Python
_TOPIC = "compound"
_QUESTION = "In a few sentences: which compound statements does this document describe?"


def built_in_document(count_tokens: Callable[[str], int]) -> str:
    """The first paragraphs of a real document that make at least `DOCUMENT_TOKENS` tokens."""
    from pydoc_data.topics import topics

    text = ""
    for paragraph in topics[_TOPIC].split("\n\n"):
        text += paragraph + "\n\n"
        if count_tokens(text) >= DOCUMENT_TOKENS:
            break
    return text


def question_about(document: str, question: str = "") -> str:
    """A user's message: the document, then the question."""
    return f"{document}\n\n{question or _QUESTION}"


def read_document(file: pathlib.Path | None, count_tokens: Callable[[str], int]) -> str:
    """The document in `file`, or the built-in one."""
    return file.read_text(encoding="utf-8") if file else built_in_document(count_tokens)
