"""Questions about a text, with answers that a program can check."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from services.prefill.calibration.texts import all_topics
from services.runtime.model.served_model import ServedModel


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """Tokens that end where an answer of at most `answer_tokens` begins, and what it must say."""

    token_ids: tuple[int, ...]
    answers: tuple[str, ...]
    answer_tokens: int

    def score(self, answer: str) -> float:
        """The share of the answers that occur in it, whatever their case: RULER's own measure."""
        lower = answer.lower()
        return sum(wanted.lower() in lower for wanted in self.answers) / len(self.answers)


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """A text and what is asked about it. `name` tells one task of a `family` from another.

    `depth` is where in the text the one thing asked for stands, from 0 to 1, where that is varied.
    """

    family: str
    name: str
    context: tuple[int, ...]
    questions: tuple[Question, ...]
    depth: float | None = None


class Writer:
    """Makes tasks out of text in one model's tokens."""

    def __init__(self, served: ServedModel) -> None:
        self._tokenizer = served.tokenizer
        self._topics = all_topics(served)

    def encode(self, text: str) -> list[int]:
        """Tokens of text that begins no prompt."""
        return self._tokenizer.encode(text, begins=False)

    def question(self, text: str, answers: Sequence[str], spare_tokens: int = 8) -> Question:
        """Room for all answers, written one after another, and `spare_tokens`."""
        room = len(self.encode(", ".join(answers))) + spare_tokens
        return Question(tuple(self.encode("\n\n" + text)), tuple(answers), room)

    def hide(
        self, sentences: Sequence[str], depths: Sequence[float], tokens: int, first: int
    ) -> tuple[int, ...]:
        """Exactly `tokens` of real text from token `first` on, a paragraph hidden at each depth.

        Depths ascend from 0 to 1, in shares of the text between the paragraphs.
        """
        hidden = [self.encode(f"\n\n{sentence}\n\n") for sentence in sentences]
        between = tokens - sum(map(len, hidden))
        assert between >= 0, "more is hidden than the text holds"
        text = self.text(between, first)
        ids: list[int] = []
        begin = 0
        for paragraph, depth in zip(hidden, depths, strict=True):
            end = int(depth * between)
            ids += text[begin:end] + paragraph
            begin = end
        return tuple(ids + text[begin:])

    def text(self, tokens: int, first: int) -> list[int]:
        """Real text from token `first` on, which begins again where it ends."""
        ids = self._topics
        first %= len(ids)
        around = ids[first:] + ids * (tokens // len(ids) + 1)
        return around[:tokens]
