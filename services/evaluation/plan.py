"""The cases that a run measures: texts and sizes of each part."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from kvstore.cache import digest_tokens
from services.evaluation.cases import Case, ConversationCase, ForcedCase, LongCase, RetrievalCase
from services.evaluation.conversations import conversations
from services.evaluation.needles import DEPTHS, LENGTHS, needles
from services.evaluation.passages import OFFSETS, Passage, cut_passages, passages
from services.evaluation.ruler import ruler
from services.evaluation.tasks import Writer
from services.runtime.model.served_model import ServedModel


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens and counts of every part; `long_texts` continuations of `generated` tokens."""

    contexts: tuple[int, ...] = (512, 1536, 3072)
    passages: int = len(OFFSETS)
    continuation_tokens: int = 256
    needle_lengths: tuple[int, ...] = LENGTHS
    needle_depths: tuple[float, ...] = DEPTHS
    task_tokens: int = 2048
    task_cases: int = 4
    long_prompt: int = 1536
    long_texts: int = 2
    generated: int = 1000


QUICK = Sizes(
    contexts=(512,),
    passages=2,
    continuation_tokens=48,
    needle_lengths=(768,),
    needle_depths=DEPTHS[1::5],
    task_tokens=640,
    task_cases=1,
    long_prompt=512,
    long_texts=1,
    generated=96,
)


PARTS = ("forced", "needles", "ruler", "conversation", "long")


class Plan:
    """The cases of the parts, in the order in which they are measured."""

    def __init__(self, served: ServedModel, sizes: Sizes, text: str = "") -> None:
        """`text` is the user's own; passages and prompts of continuations are cut from it."""
        self._served = served
        self._sizes = sizes
        self._own = text

    def cases(self, parts: Sequence[str]) -> list[Case]:
        """Return the cases of `parts`. Raises `InvalidParameter` if the text is too short."""
        made = (self._forced, self._needles, self._ruler, self._conversations, self._long)
        makers = dict(zip(PARTS, made, strict=True))
        return [case for part in parts for case in makers[part]()]

    def _forced(self) -> Iterator[Case]:
        for tokens in self._sizes.contexts:
            for name, passage in texts(
                self._served,
                self._own,
                tokens,
                self._sizes.continuation_tokens,
                self._sizes.passages,
            ):
                yield ForcedCase(name, passage)

    def _needles(self) -> Iterator[Case]:
        lengths, depths = self._sizes.needle_lengths, self._sizes.needle_depths
        for task in needles(Writer(self._served), lengths, depths):
            yield RetrievalCase("needles", task)

    def _ruler(self) -> Iterator[Case]:
        for task in ruler(Writer(self._served), self._sizes.task_tokens, self._sizes.task_cases):
            yield RetrievalCase("ruler", task)

    def _conversations(self) -> Iterator[Case]:
        tokens, cases = self._sizes.task_tokens, self._sizes.task_cases
        for task in conversations(Writer(self._served), tokens, cases):
            yield ConversationCase(task)

    def _long(self) -> Iterator[Case]:
        sizes = self._sizes
        for name, passage in texts(self._served, self._own, sizes.long_prompt, 1, sizes.long_texts):
            yield LongCase(name, passage.prompt, sizes.generated)


def texts(
    served: ServedModel, own: str, prompt: int, continuation: int, count: int
) -> Iterator[tuple[str, Passage]]:
    """Passages with names: of the user's `own` text, or where that is empty the fixed ones.

    Raises `InvalidParameter` if the text is too short.
    """
    if own:
        ids = served.tokenizer.encode(own)
        # another text must not be taken for this one when a run goes on
        text = f"own text {digest_tokens(ids)[:8]}"
        cut = cut_passages(ids, prompt, continuation, count)
        yield from ((f"{text}, passage {n}", passage) for n, passage in enumerate(cut))
        return
    offsets = OFFSETS[:count]
    found = passages(served, prompt, continuation, offsets)
    yield from zip([f"topics from {first}" for first in offsets], found, strict=True)
