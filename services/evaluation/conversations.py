"""One text and several questions: for a cache that is shared, and for one that goes on.

In the manner of SCBench (arXiv 2412.10319): retrieval by key, where a later question is about what
none before it was about.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from services.evaluation.needles import PLACES
from services.evaluation.tasks import Task, Writer

TURNS = 5


def conversations(writer: Writer, tokens: int, cases: int) -> Iterator[Task]:
    """`cases` tasks of `TURNS` questions each, about a context of `tokens`."""
    for case in range(cases):
        chance = random.Random(f"conversation {tokens} {case}")
        codes = {
            place: str(chance.randrange(1000, 10_000)) for place in chance.sample(PLACES, TURNS)
        }
        sentences = [
            f"The door code of the {place} office is {code}." for place, code in codes.items()
        ]
        depths = [(n + chance.random()) / TURNS for n in range(TURNS)]
        context = writer.hide(sentences, depths, tokens, chance.randrange(100_000))
        questions = tuple(
            writer.question(f"The door code of the {place} office is", [codes[place]])
            for place in chance.sample(sorted(codes), TURNS)
        )
        yield Task("conversation", f"{tokens} tokens, case {case}", context, questions)
