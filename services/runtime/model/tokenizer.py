"""Prompts to tokens and back, without the stateful parts of a Hugging Face tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from kvstore.cache import canonical_json
from kvstore.errors import InvalidParameter
from services.runtime.model.chat_format import ChatFormat, Messages
from services.runtime.model.model_errors import ModelRefused
from services.runtime.model.text_stream import TextStream
from services.runtime.model.token_classes import TokenClasses, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# `encode` keeps Python's lock for as long as it takes: 0.6 s for a million characters;
# `encode_batch` gives it back
_LONG_CHARACTERS = 4096


class PromptTokenizer:
    """One model's tokenizer. Safe to share between threads.

    `vocabulary_size` is the model's, which may be larger than the tokenizer's own. The
    tokenizer's padding and truncation are switched off. `ModelRefused` if it is not backed
    by the tokenizers library.

    `refuses_control_tokens`: whether chat messages that spell a special token are refused, which
    would otherwise begin or end a turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary_size: int) -> None:
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ModelRefused("its tokenizer has no tokenizer.json (a tokenizers backend)")
        self._tokenizer = tokenizer
        # the backend itself: a call of the wrapper sets padding and truncation for all threads
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._classes = TokenClasses(tokenizer, vocabulary_size)
        self._format = ChatFormat(tokenizer)
        self._special = {
            self._backend.id_to_token(token_id): token_id for token_id in special_ids(tokenizer)
        }
        self.refuses_control_tokens = False

    @property
    def eos_token_id(self) -> int | None:
        token_id: int | None = self._tokenizer.eos_token_id
        return token_id

    @property
    def classes(self) -> torch.Tensor:
        """`TokenClass` of every token, uint8 `[vocabulary]`."""
        return self._classes.table

    @property
    def longest_token(self) -> int:
        """The most characters that one token stands for, at least one."""
        return self._classes.longest

    def classify(self, token_ids: Sequence[int]) -> torch.Tensor:
        """`TokenClass` of each token, uint8 `[T]`, spelled-out template markers included."""
        return self._classes.classify(token_ids)

    def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """Tokens of a plain text; if it `begins` a prompt, with a BOS where that is convention."""
        if len(text) <= _LONG_CHARACTERS:
            ids: list[int] = self._backend.encode(text, add_special_tokens=begins).ids
            return ids
        (encoded,) = self._backend.encode_batch([text], add_special_tokens=begins)
        return list(encoded.ids)

    def encode_chat(self, messages: Messages) -> list[int]:
        """Tokens of (role, content) pairs in the model's own format, ready for its answer.

        `ChatTemplateMissing`, or `InvalidParameter` if the template rejects a message or leaves it
        out.
        """
        self._require_text(messages)
        # the template writes the BOS itself
        return self.encode(self._format.chat(messages), begins=False)

    def encode_turn(self, messages: Messages, *, after: int) -> list[int]:
        """Tokens that follow the model's own answer, whose last token is `after`.

        The template's end of an answer comes first, without the token `after` itself. Raises what
        `encode_chat` raises.
        """
        self._require_text(messages)
        ids = self.encode(self._format.turn(messages), begins=False)
        return ids[1:] if ids[:1] == [after] else ids

    def encode_context(self, messages: Messages) -> list[int]:
        """Tokens of messages that later messages continue.

        Raises what `encode_chat` raises, and `InvalidParameter` where the template writes them in
        another way if messages follow.
        """
        self._require_text(messages)
        return self.encode(self._format.context(messages), begins=False)

    def encode_question(self, messages: Messages) -> list[int]:
        """Tokens that follow messages that were encoded as a context, ready for an answer.

        Raises what `encode_context` raises.
        """
        self._require_text(messages)
        question, before = self._format.question(messages), self._format.boundary
        head = self.encode(before, begins=False)
        ids = self.encode(before + question, begins=False)
        # after other text, because some tokenizers begin every text with a space
        if ids[: len(head)] == head:
            return ids[len(head) :]
        return self.encode(question, begins=False)

    def special_token_id(self, text: str) -> int | None:
        """The id of the special token that is spelled like this; None if there is none."""
        return self._special.get(text)

    def _require_text(self, messages: Messages) -> None:
        if not self.refuses_control_tokens:
            return
        for place, (_, content) in enumerate(messages):
            held = next((text for text in self._special if text in content), None)
            if held is not None:
                reason = f"message {place} holds the control token {held!r}"
                raise InvalidParameter("messages", f"{reason}, which --control-tokens refuses")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens; special tokens have none."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=True)
        return text

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        """A stream of text for tokens that follow `context`."""
        return TextStream(self.decode, context)

    def digest(self) -> str:
        """SHA-256 over what each token id means, and the chat template; the same in every process.

        The rules that split text into ids are left out: caches depend on ids alone, and releases of
        transformers write these rules differently for the same GGUF file.
        """
        identity = {
            "vocabulary": self._backend.get_vocab(with_added_tokens=True),
            "special": sorted(special_ids(self._tokenizer)),
            "chat_template": self._tokenizer.chat_template,
        }
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()
