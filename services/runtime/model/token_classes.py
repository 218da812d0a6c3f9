"""Classes of tokens (special, punctuation), and markers of chat templates in plain text."""

from __future__ import annotations

import itertools
import string
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy
import torch

from kvstore.errors import InvalidParameter
from kvstore.rules import TokenClass

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# the character that SentencePiece writes for a space
_SPACE_MARK = "\u2581"
# markers that chat templates spell out in plain text, so that they span several tokens
_LITERAL_MARKERS = (
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|im_start|>", "<|im_end|>",
    "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "### System:", "### Instruction:", "### Input:", "### Response:", "### User:", "### Assistant:",
    "SYSTEM:", "USER:", "ASSISTANT:", "Human:", "Assistant:", "<s>", "</s>",
)  # fmt: skip


class TokenClasses:
    """A `TokenClass` for every token of a vocabulary. Safe to share between threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary_size: int) -> None:
        special = special_ids(tokenizer)
        self._texts = _texts(tokenizer, vocabulary_size)
        self.longest = max(1, *map(len, self._texts))
        self.table = torch.zeros(len(self._texts), dtype=torch.uint8)
        for token_id, text in enumerate(self._texts):
            if token_id in special:
                self.table[token_id] = TokenClass.SPECIAL
            elif text and all(map(_is_punctuation, text)):
                self.table[token_id] = TokenClass.PUNCTUATION
        self._literals = _literals(tokenizer, special)

    def classify(self, token_ids: Sequence[int]) -> torch.Tensor:
        """uint8 `[T]`: the table's class, and SPECIAL for all tokens of a spelled-out marker.

        `InvalidParameter` for an id outside the vocabulary.
        """
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < len(self._texts):
            raise InvalidParameter("token_ids", f"must lie within 0 and {len(self._texts) - 1}")
        classes = self.table[torch.tensor(token_ids, dtype=torch.long)]
        if self._literals:
            self._mark_literals(token_ids, classes)
        return classes

    def _mark_literals(self, token_ids: Sequence[int], classes: torch.Tensor) -> None:
        # by text and not by ids, because a marker's tokens depend on what stands beside it
        pieces = [self._texts[token_id] for token_id in token_ids]
        text = "".join(pieces)
        ends = numpy.fromiter(itertools.accumulate(map(len, pieces)), numpy.int64, len(pieces))
        for literal in self._literals:
            start = text.find(literal)
            while start >= 0:
                first, last = numpy.searchsorted(ends, (start, start + len(literal) - 1), "right")
                classes[int(first) : int(last) + 1] |= int(TokenClass.SPECIAL)
                start = text.find(literal, start + len(literal))


def special_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids of all control tokens; `all_special_ids` misses those without a role, as `<file_sep>`."""
    added = tokenizer.added_tokens_decoder.items()
    return set(tokenizer.all_special_ids) | {i for i, token in added if token.special}


def _texts(tokenizer: PreTrainedTokenizerFast, vocabulary_size: int) -> list[str]:
    """Each token's text on its own; bytes that are no character become U+FFFD."""
    known = len(tokenizer)
    texts: list[str] = tokenizer.backend_tokenizer.decode_batch(
        [[token_id] for token_id in range(known)], skip_special_tokens=False
    )
    pieces = tokenizer.convert_ids_to_tokens(list(range(known)))
    for token_id, piece in enumerate(pieces):
        # decoding a token alone drops its leading space
        if piece is not None and piece.startswith(_SPACE_MARK):
            texts[token_id] = piece.replace(_SPACE_MARK, " ")
    # models pad their vocabulary to a round number
    return texts + [""] * (vocabulary_size - known)


def _is_punctuation(character: str) -> bool:
    return (
        character in string.punctuation
        or character.isspace()
        or unicodedata.category(character).startswith("P")
    )


def _literals(tokenizer: PreTrainedTokenizerFast, special: set[int]) -> tuple[str, ...]:
    """Markers in the chat template that are not one special token anyway."""
    template = tokenizer.chat_template
    # several templates may lie under several names
    text = template if isinstance(template, str) else " ".join((template or {}).values())
    vocabulary = {tokenizer.convert_ids_to_tokens(token_id) for token_id in special}
    return tuple(m for m in _LITERAL_MARKERS if m in text and m not in vocabulary)
