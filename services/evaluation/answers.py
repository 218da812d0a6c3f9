"""Answers from a compact cache, to later questions and to one that is part of the prompt."""

from __future__ import annotations

import dataclasses
import time

from kvstore.pool import SequencePages
from services.evaluation.prompt_record import Compacted
from services.evaluation.tasks import Question, Task
from services.evaluation.teacher_forcing import feed, open_fork, open_pages
from services.runtime.model.served_model import ServedModel


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """A score from 0 to 1 for each question asked, and what the answers cost.

    `load_seconds` from the shipped layers to pages, `answer_seconds` for all questions and answers.
    """

    scores: tuple[float, ...]
    costs: dict[str, float]
    load_seconds: float
    answer_seconds: float

    @property
    def score(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def values(self) -> dict[str, float | list[float]]:
        return {
            "score": self.score,
            "scores": list(self.scores),
            "load_seconds": self.load_seconds,
            "answer_seconds": self.answer_seconds,
            **self.costs,
        }


def ask_apart(served: ServedModel, task: Task, compacted: Compacted) -> Answered:
    """Query-agnostic: every question is put to the cache as it was made, each to its own fork."""
    return _ask(served, task, compacted, in_turn=False)


def ask_in_turn(served: ServedModel, task: Task, compacted: Compacted) -> Answered:
    """A conversation: each question follows those before it and their right answers."""
    return _ask(served, task, compacted, in_turn=True)


def aware_prompt(task: Task) -> tuple[int, ...]:
    """The text and its first question but for the last token, which is fed as it is in service."""
    return (*task.context, *task.questions[0].token_ids[:-1])


def ask_aware(served: ServedModel, task: Task, compacted: Compacted) -> Answered:
    """Query-aware: the first question is part of what was compacted, `aware_prompt`."""
    question = task.questions[0]
    asked = dataclasses.replace(question, token_ids=question.token_ids[-1:])
    return _ask(served, dataclasses.replace(task, questions=(asked,)), compacted, in_turn=False)


def _ask(served: ServedModel, task: Task, compacted: Compacted, *, in_turn: bool) -> Answered:
    begin = time.perf_counter()
    more = sum(
        max(len(_known(served, question)), len(question.token_ids) + question.answer_tokens)
        for question in task.questions
    )
    (pages,) = open_pages(served, [compacted.layers], compacted.tokens, more, forks=1)
    loaded = time.perf_counter()
    scores: list[float] = []
    for question in task.questions:
        if in_turn and scores:
            feed(served, [pages], _known(served, task.questions[len(scores) - 1]))
        scores.append(question.score(_answer(served, pages, question)))
    answered = time.perf_counter()
    pages.release()
    return Answered(tuple(scores), compacted.costs, loaded - begin, answered - loaded)


def _known(served: ServedModel, question: Question) -> tuple[int, ...]:
    """The question with its right answer, as a later one finds them."""
    answer = served.tokenizer.encode(" " + ", ".join(question.answers), begins=False)
    return (*question.token_ids, *answer)


def _answer(served: ServedModel, pages: SequencePages, question: Question) -> str:
    """The greedy answer of a fork, which is gone afterwards."""
    fork = open_fork(pages, len(question.token_ids) + question.answer_tokens)
    logits = feed(served, [fork], question.token_ids)
    answer = [int(logits.argmax())]
    while len(answer) < question.answer_tokens and answer[-1] not in served.eos_token_ids:
        logits = feed(served, [fork], answer[-1:])
        answer.append(int(logits.argmax()))
    fork.release()
    return served.tokenizer.decode(answer)
