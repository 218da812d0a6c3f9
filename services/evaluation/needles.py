"""Single sentences hidden in real text, and asked for in their own words.

Their wording is chosen so that SmolLM2's full cache finds them, and what a compact cache misses is
its own loss.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from services.evaluation.tasks import Task, Writer

LENGTHS = (1500, 2000, 2500, 3000, 3500, 4000)
DEPTHS = tuple((2 * n + 1) / 24 for n in range(12))
_SEED = 7


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PLACES = words("Athens Berlin Cairo Dublin Lima Lisbon Madrid Oslo Prague Seoul Tokyo Vienna")
NAMES = words("Alice Anders Emma Frank Helen Henry Julia Maria Oscar Pedro Priya Tomas")
FRUITS = words("apple banana cherry grape kiwi lemon mango melon orange papaya peach plum")

# a sentence, how the question ends, and the answer. Of four wordings tried on twelve texts of
# 1,500 to 4,000 tokens SmolLM2's full cache found all of each; of "one of the special magic numbers
# for {place} is: {code}", asked at length, eleven
_KINDS = (
    (
        "The door code of the {place} office is {code}.",
        "What is the door code of the {place} office? The door code of the {place} office is",
        "{code}",
    ),
    (
        "To reach the {place} office, dial extension {code}.",
        "To reach the {place} office, dial extension",
        "{code}",
    ),
    (
        'The password of {name} is "{fruit}-{code}".',
        'The password of {name} is "',
        "{fruit}-{code}",
    ),
    (
        "The favourite fruit of {name} is the {fruit}.",
        "The favourite fruit of {name} is the",
        "{fruit}",
    ),
)


def needles(
    writer: Writer, lengths: Sequence[int] = LENGTHS, depths: Sequence[float] = DEPTHS
) -> Iterator[Task]:
    """One task per length and depth, always the same ones; the kinds take turns."""
    for row, tokens in enumerate(lengths):
        for column, depth in enumerate(depths):
            chance = random.Random(f"{_SEED} {tokens} {depth}")
            told = {
                "place": chance.choice(PLACES),
                "name": chance.choice(NAMES),
                "fruit": chance.choice(FRUITS),
                "code": str(chance.randrange(1000, 10_000)),
            }
            sentence, asked, answer = (
                part.format(**told) for part in _KINDS[(row + column) % len(_KINDS)]
            )
            context = writer.hide([sentence], [depth], tokens, chance.randrange(100_000))
            question = writer.question(asked, [answer])
            yield Task("needle", f"{tokens} tokens, depth {depth:.2f}", context, (question,), depth)
