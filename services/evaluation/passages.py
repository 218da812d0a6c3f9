"""English technical prose that every Python carries, as tokens, and pass keys hidden in it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from kvstore.errors import InvalidParameter
from services.prefill.calibration.texts import all_topics
from services.runtime.model.served_model import ServedModel

# where the passages begin, in SmolLM2's tokens of all topics by sorted name. The topics repeat one
# another: of prompts of 1,536 or 3,072 tokens none of the continuations shares a run of 16 tokens
# with its prompt, up to 1,000 or 256 tokens of them
OFFSETS = (20_000, 60_000, 100_000, 10_000, 30_000, 40_000, 70_000, 90_000)
# here it does, for 140 of 256 tokens
COPYING_OFFSET = 50_000
# where in the prompt a pass key is hidden, as a share of its length
DEPTHS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
_QUESTION = "\n\nWhat is the pass key that this text mentions? The pass key is"


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
    """A prompt, the tokens fed after it, and for each of these the token that really followed."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    targets: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class HiddenKey:
    """A prompt with a pass key in it, a question that comes only after compression, the answer."""

    prompt: tuple[int, ...]
    question: tuple[int, ...]
    key: str


def passages(
    served: ServedModel, prompt_tokens: int, fed_tokens: int, offsets: Sequence[int] = OFFSETS
) -> tuple[Passage, ...]:
    """The passages that begin there."""
    ids = all_topics(served)
    return tuple(_cut(ids, first, prompt_tokens, fed_tokens) for first in offsets)


def _cut(ids: Sequence[int], first: int, prompt_tokens: int, fed_tokens: int) -> Passage:
    text = tuple(ids[first : first + prompt_tokens + fed_tokens + 1])
    return Passage(text[:prompt_tokens], text[prompt_tokens:-1], text[prompt_tokens + 1 :])


def cut_passages(
    ids: Sequence[int], prompt_tokens: int, fed_tokens: int, count: int
) -> tuple[Passage, ...]:
    """Cut up to `count` passages, spread over a text, that do not overlap.

    Raises `InvalidParameter` if the text has no room for one.
    """
    needed = prompt_tokens + fed_tokens + 1
    room = min(count, len(ids) // needed)
    if room < 1:
        raise InvalidParameter("text", f"has {len(ids)} tokens, {needed} are needed")
    return tuple(
        _cut(ids, number * (len(ids) // room), prompt_tokens, fed_tokens) for number in range(room)
    )


def hidden_keys(served: ServedModel, prompt_tokens: int) -> tuple[HiddenKey, ...]:
    """One case a depth, each of exactly `prompt_tokens`, with a five-digit key of its own."""
    ids, random_keys = all_topics(served), random.Random(0)
    cases = []
    for depth in DEPTHS:
        key = str(random_keys.randrange(10_000, 100_000))
        hidden = served.tokenizer.encode(f"\n\nThe pass key is {key}. Remember it.\n\n")
        before = int(depth * (prompt_tokens - len(hidden)))
        after = prompt_tokens - len(hidden) - before
        prompt = ids[:before] + hidden + ids[before : before + after]
        cases.append(HiddenKey(tuple(prompt), tuple(served.tokenizer.encode(_QUESTION)), key))
    return tuple(cases)
