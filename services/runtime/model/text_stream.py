"""Text of tokens as they are generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# a character spans at most four byte tokens; a longer unfinished one is not text
_HELD_TOKENS_LIMIT = 16
# enough for any character and for the space a decoder drops before the first word
_CONTEXT_TOKENS = 8


class TextStream:
    """Turns one sequence's tokens into text deltas, never splitting a character.

    The deltas together equal the decoded text of all tokens at once. `context` are the tokens
    before the first one pushed: without them a decoder drops the space before a first word.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._emitted = list(context[-_CONTEXT_TOKENS:])
        self._held: list[int] = []
        # a context may end within a character, whose bytes are then at most three tokens
        while len(self._held) < 3 and self._decode(self._emitted).endswith(_REPLACEMENT):
            self._held.insert(0, self._emitted.pop())
        # of the context, unless a token completes a character of it
        self._known = self._delta()

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._held.append(token_id)
        delta = self._delta()
        if delta.endswith(_REPLACEMENT) and len(self._held) < _HELD_TOKENS_LIMIT:
            return ""
        return self._emit(delta)

    def flush(self) -> str:
        """Return the text that is held back; an unfinished character becomes U+FFFD."""
        return self._emit(self._delta()) if self._held else ""

    def _delta(self) -> str:
        # decoding anew from emitted tokens keeps the spaces between words right
        before = self._decode(self._emitted)
        return self._decode(self._emitted + self._held)[len(before) :]

    def _emit(self, delta: str) -> str:
        text = delta[_same_characters(self._known, delta) :]
        self._known = ""
        # an empty delta (a control token) gives the decoder no context: keep both
        emitted = self._held if delta else self._emitted + self._held
        # bytes that were given up must not combine with later ones
        self._emitted = [] if delta.endswith(_REPLACEMENT) else emitted[-_HELD_TOKENS_LIMIT:]
        self._held = []
        return text


def _same_characters(first: str, second: str) -> int:
    """Count the characters with which both begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))
