"""Pass keys that are asked for after the prompt has been compacted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvstore.calibration import Calibration
from kvstore.policies import Policy
from kvstore.pool import SequencePages
from services.evaluation.passages import HiddenKey
from services.evaluation.prompt_record import PromptRecord
from services.evaluation.teacher_forcing import feed, open_pages
from services.runtime.model.served_model import ServedModel

# five digits, a token each, and room for a space or a quotation mark before them
_ANSWER_TOKENS = 12


def found_keys(
    served: ServedModel,
    cases: Sequence[HiddenKey],
    policies: Sequence[Policy],
    on_case: Callable[[], None],
    calibration: Calibration | None = None,
) -> list[int]:
    """Count, for each policy, the cases whose greedy answer holds the key, with rules applied."""
    found = [0] * len(policies)
    for case in cases:
        for number, answer in enumerate(_answers(served, case, policies, calibration)):
            found[number] += case.key in answer
        on_case()
    return found


def _answers(
    served: ServedModel,
    case: HiddenKey,
    policies: Sequence[Policy],
    calibration: Calibration | None,
) -> list[str]:
    record = PromptRecord(served, case.prompt, calibration)
    length = len(case.prompt)
    more = len(case.question) + _ANSWER_TOKENS
    caches = [record.compact(policy) for policy in policies]
    sequences = open_pages(served, caches, length, more)
    return [_answer(served, pages, case.question) for pages in sequences]


def _answer(served: ServedModel, pages: SequencePages, question: Sequence[int]) -> str:
    """Feed the question as one block, then choose greedily."""
    logits = feed(served, [pages], question)
    answer = [int(logits.argmax())]
    while len(answer) < _ANSWER_TOKENS:
        logits = feed(served, [pages], answer[-1:])
        answer.append(int(logits.argmax()))
    return served.tokenizer.decode(answer)
