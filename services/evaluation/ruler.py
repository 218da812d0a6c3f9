"""The task families of RULER, generated from real text and a fixed seed.

Source: "RULER: What's the Real Context Size of Your Long-Context Language Models?" (arXiv
2404.06654). Its needles are hidden in essays and its questions come from SQuAD and HotpotQA; here
the essays are Python's documentation and the questions are about invented people, since nothing is
downloaded. As there, a question ends with the beginning of its answer.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

from services.evaluation.needles import FRUITS, NAMES, PLACES, words
from services.evaluation.tasks import Question, Task, Writer

_CRAFTS = words("baker carpenter dentist farmer gardener lawyer painter pilot sailor tailor")
# names of things that the task of words counts
_WORDS = words(
    "anchor basket candle drawer engine feather garden hammer island jacket kettle ladder mirror "
    "needle oyster pencil quartz ribbon saddle ticket umbrella violin window yogurt zipper acorn "
    "bridge copper dragon eagle falcon guitar helmet insect jungle kitten lantern marble napkin "
    "orchid"
)
_SYLLABLES = words("ba co du fe gi ho ju ka le mi no pu ra se ti vo wu xa ye zi")

_Made = tuple[tuple[int, ...], Question]
_Family = Callable[[Writer, random.Random, int], _Made]


def ruler(writer: Writer, tokens: int, cases: int) -> Iterator[Task]:
    """`cases` tasks of each family, each a context of `tokens`."""
    for family, make in FAMILIES.items():
        for case in range(cases):
            context, question = make(writer, random.Random(f"{family} {tokens} {case}"), tokens)
            yield Task(family, f"{tokens} tokens, case {case}", context, (question,))


def _single(writer: Writer, chance: random.Random, tokens: int) -> _Made:
    return _numbers(writer, chance, tokens, hidden=1, values=1, asked=1)


def _multi_key(writer: Writer, chance: random.Random, tokens: int) -> _Made:
    return _numbers(writer, chance, tokens, hidden=4, values=1, asked=1)


def _multi_value(writer: Writer, chance: random.Random, tokens: int) -> _Made:
    return _numbers(writer, chance, tokens, hidden=1, values=4, asked=1)


def _multi_query(writer: Writer, chance: random.Random, tokens: int) -> _Made:
    return _numbers(writer, chance, tokens, hidden=4, values=1, asked=4)


def _numbers(
    writer: Writer, chance: random.Random, tokens: int, *, hidden: int, values: int, asked: int
) -> _Made:
    """`hidden` keys of `values` numbers each in the text; the question is for `asked` keys."""
    told = {
        place: [str(chance.randrange(1000, 10_000)) for _ in range(values)]
        for place in chance.sample(PLACES, hidden)
    }
    sentences = [
        f"One of the door codes of the {place} office is {number}."
        for place, numbers in told.items()
        for number in numbers
    ]
    chance.shuffle(sentences)
    wanted = chance.sample(sorted(told), asked)
    names = " and of the ".join(f"{place} office" for place in wanted)
    plural = "s are" if values * asked > 1 else " is"
    text = f"What are all the door codes of the {names}? The door code{plural}"
    question = writer.question(text, [number for place in wanted for number in told[place]])
    return _hidden(writer, chance, sentences, tokens), question


def _variables(writer: Writer, chance: random.Random, tokens: int) -> _Made:
    """A chain of assignments: every variable that holds the value at its beginning."""
    value = str(chance.randrange(10_000, 100_000))
    names = ["".join(chance.sample("ABCDEFGHKLMNPRSTUVWXYZ", 5)) for _ in range(4)]
    lines = [f"VAR {names[0]} = {value}"]
    lines += [f"VAR {later} = VAR {one}" for one, later in itertools.pairwise(names)]
    text = (
        f"Find all variables that are assigned the value {value} in the text above. "
        f"The variables assigned {value} are:"
    )
    return _hidden(writer, chance, lines, tokens), writer.question(text, names)


def _common_words(writer: Writer, chance: random.Random, tokens: int) -> _Made:
    """Ten words come ten times as often as the others."""
    words = chance.sample(_WORDS, len(_WORDS))
    common = words[:10]
    text = "What are the ten most common words in the list above? The ten most common words are:"
    question = writer.question(text, common)
    weights = [10 if word in common else 1 for word in words]
    return _word_list(writer, chance, words, weights, tokens), question


def _frequent_words(writer: Writer, chance: random.Random, tokens: int) -> _Made:
    """Invented words by Zipf's law with exponent 2, RULER's own; the first three are wanted."""
    words = ["".join(chance.sample(_SYLLABLES, 3)) for _ in range(40)]
    words = list(dict.fromkeys(words))
    text = (
        "What are the three most frequent words in the coded text above? "
        "The three most frequent words are:"
    )
    question = writer.question(text, words[:3])
    weights = [rank**-2.0 for rank in range(1, len(words) + 1)]
    return _word_list(writer, chance, words, weights, tokens), question


def _questions(writer: Writer, chance: random.Random, tokens: int) -> _Made:
    """A paragraph about each of several people; one is asked about, in other words."""
    names = chance.sample(NAMES, 4)
    homes, crafts, fruits = (chance.sample(all_, 4) for all_ in (PLACES, _CRAFTS, FRUITS))
    paragraphs = [
        f"{name} grew up in {home}, works as a {craft} and likes to eat a fresh {fruit}."
        for name, home, craft, fruit in zip(names, homes, crafts, fruits, strict=True)
    ]
    asked = chance.randrange(4)
    text, answer = chance.choice(
        (
            (f"In which city did {names[asked]} grow up? Answer: in the city of", homes[asked]),
            (f"What is the job of {names[asked]}? Answer: {names[asked]} is a", crafts[asked]),
        )
    )
    return _hidden(writer, chance, paragraphs, tokens), writer.question(text, [answer])


def _hidden(
    writer: Writer, chance: random.Random, sentences: Sequence[str], tokens: int
) -> tuple[int, ...]:
    depths = sorted(chance.uniform(0.02, 0.98) for _ in sentences)
    return writer.hide(sentences, depths, tokens, chance.randrange(100_000))


def _word_list(
    writer: Writer,
    chance: random.Random,
    words: Sequence[str],
    weights: Sequence[float],
    tokens: int,
) -> tuple[int, ...]:
    # a word has a token at least
    drawn = chance.choices(words, weights, k=tokens)
    return tuple(writer.encode(" ".join(drawn))[:tokens])


FAMILIES: dict[str, _Family] = {
    "single needle": _single,
    "multi-key needles": _multi_key,
    "multi-value needles": _multi_value,
    "multi-query needles": _multi_query,
    "variable tracking": _variables,
    "common words": _common_words,
    "frequent words": _frequent_words,
    "question answering": _questions,
}
