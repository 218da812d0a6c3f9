"""The text of an answer as its tokens come, and when it ends."""

from __future__ import annotations

import dataclasses

from headwise.results import Delta, FinishReason
from services.decode.engine.sampling import Choice
from services.decode.engine.stops import StopFinder
from services.runtime.model.text_stream import TextStream


@dataclasses.dataclass(frozen=True, slots=True)
class EndRules:
    """Conditions that end an answer; `max_tokens` counts the end token too."""

    max_tokens: int
    stop_texts: tuple[str, ...]
    stop_token_ids: frozenset[int]


class Answer:
    """Takes tokens, gives deltas, and knows when it is finished."""

    def __init__(self, rules: EndRules, stream: TextStream, index: int = 0) -> None:
        self.index = index
        self._rules = rules
        self._stream = stream
        self._stops = StopFinder(rules.stop_texts)
        self.tokens = 0
        self.finish_reason: FinishReason | None = None

    @property
    def tokens_left(self) -> int:
        """Tokens that the answer may still have."""
        return self._rules.max_tokens - self.tokens

    def push(self, choice: Choice) -> Delta:
        """Take in the next token. Sets `finish_reason` where it is the last."""
        self.tokens += 1
        text = self._push(choice.token_id)
        return Delta(text, (choice.token_id,), self.index, choice.logprobs)

    def _push(self, token_id: int) -> str:
        if token_id in self._rules.stop_token_ids:
            self.finish_reason = FinishReason.STOP
            return self._rest()
        text, stopped = self._stops.push(self._stream.push(token_id))
        if stopped:
            self.finish_reason = FinishReason.STOP
        elif self.tokens >= self._rules.max_tokens:
            self.finish_reason = FinishReason.LENGTH
            text += self._rest()
        return text

    def _rest(self) -> str:
        text, stopped = self._stops.push(self._stream.flush())
        return text if stopped else text + self._stops.flush()
