"""Text from tokens, as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# a character spans at most four byte tokens; more that end in no whole character are not text
_HELD_TOKENS_LIMIT = 16
# enough for any character and for the space a decoder drops before the first word
_CONTEXT_TOKENS = 8


class TextStream:
    """Turns one sequence's tokens into text deltas, never splitting a character.

    What the deltas add up to is what decoding all tokens at once gives. `context` are the tokens
    before the first one pushed: without them a decoder drops the space before a first word.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._told = list(context[-_CONTEXT_TOKENS:])
        self._held: list[int] = []
        # a context may end within a character, whose bytes are then at most three tokens
        while len(self._held) < 3 and self._decode(self._told).endswith(_REPLACEMENT):
            self._held.insert(0, self._told.pop())

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._held.append(token_id)
        delta = self._delta()
        if delta.endswith(_REPLACEMENT) and len(self._held) < _HELD_TOKENS_LIMIT:
            return ""
        return self._tell(delta)

    def flush(self) -> str:
        """What is still held back, an unfinished character as U+FFFD."""
        return self._tell(self._delta()) if self._held else ""

    def _delta(self) -> str:
        # decoding anew from tokens already told keeps the spaces between words right
        before = self._decode(self._told)
        return self._decode(self._told + self._held)[len(before) :]

    def _tell(self, delta: str) -> str:
        # an empty delta (a control token) says nothing of the context: keep both
        told = self._held if delta else self._told + self._held
        # bytes given up must not join with those to come
        self._told = [] if delta.endswith(_REPLACEMENT) else told[-_HELD_TOKENS_LIMIT:]
        self._held = []
        return delta
