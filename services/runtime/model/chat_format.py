"""The model's chat template: messages to text, and the place where a context ends in it.

A context is messages that are stored before the messages that follow them are known. Some templates
write a system message as a turn of its own, others into the turn of the next user, and some leave
it out. So the place is found by rendering stand-ins, and messages that do not come out whole are
refused.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import jinja2

from kvstore.errors import InvalidParameter
from services.runtime.model.model_errors import ChatTemplateMissing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages: TypeAlias = Sequence[tuple[str, str]]

# messages that a context may begin with, most wanted first: some templates take no system message
_CONTEXTS = (("system",), ("user", "assistant"))


class ChatFormat:
    """Renders messages with one tokenizer's template. Safe to share between threads.

    Every method raises `ChatTemplateMissing`, and `InvalidParameter` for messages that the template
    rejects or leaves out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        # a text that templates copy as it is and that no message holds
        self._mark = f"headwise{secrets.token_hex(8)}"

    def chat(self, messages: Messages) -> str:
        """Return the messages, ready for the model's answer.

        If the last message is the assistant's, the answer continues it.
        """
        text = self._render(messages)
        self._require_complete([role for role, _ in messages], text_after=())
        return text

    def turn(self, messages: Messages) -> str:
        """Return what follows the model's own answer: its end, and the messages."""
        roles = [role for role, _ in messages]
        self._require_complete(roles, text_after=("user", "assistant"))
        before = [("user", self._stand_in(0)), ("assistant", self._stand_in(1))]
        _, found, text = self._render([*before, *messages]).rpartition(self._stand_in(1))
        if not found:
            raise InvalidParameter("messages", "this model's template leaves answers out")
        return text

    def context(self, messages: Messages) -> str:
        """Return the text that is stored for messages which others will follow."""
        first = [("user", self._stand_in(9))]
        text = self._cut(self._render([*messages, *first]), self.question(first))
        stand_ins = [(role, self._stand_in(n)) for n, (role, _) in enumerate(messages)]
        rendered = self._cut(self._render([*stand_ins, *first]), self.question(first))
        self._require(stand_ins, rendered)
        return text

    def question(self, messages: Messages) -> str:
        """Return what follows any context, ready for the model's answer."""
        roles, boundary = self._context_roles, self.boundary
        self._require_complete([role for role, _ in messages], text_after=roles)
        text = self._render([*self._stand_ins(roles), *messages])
        if not text.startswith(boundary):
            raise InvalidParameter(
                "messages", "this model's template puts nothing like them after a stored context"
            )
        return text.removeprefix(boundary)

    @functools.cached_property
    def boundary(self) -> str:
        """The text of a context of stand-ins; questions begin where it ends."""
        roles = self._context_roles
        before = self._stand_ins(roles)
        asked = [self._render([*before, ("user", f"{n}{self._mark}")]) for n in range(2)]
        try:
            alone = self._render(before, answer=False)
        except InvalidParameter:
            alone = ""
        # a turn of its own, or else as far as the question does not matter
        apart = before[-1][1] in alone and asked[0].startswith(alone)
        whole = alone if apart else _common_prefix(*asked)
        self._require(before, whole)
        return whole

    @functools.cached_property
    def _context_roles(self) -> tuple[str, ...]:
        for roles in _CONTEXTS:
            stand_ins = [*self._stand_ins(roles), ("user", self._stand_in(9))]
            try:
                self._require(stand_ins, self._render(stand_ins))
            except InvalidParameter:
                continue
            return roles
        raise InvalidParameter("messages", "this model's template has no stored contexts")

    def _cut(self, text: str, question: str) -> str:
        if not text.endswith(question):
            raise InvalidParameter(
                "messages", "this model's template writes them in another way if others follow"
            )
        return text.removesuffix(question)

    def _require_complete(self, roles: Sequence[str], text_after: Sequence[str]) -> None:
        """Raise `InvalidParameter` if the template leaves messages of these roles out."""
        before = self._stand_ins(text_after)
        asked = [(role, self._stand_in(len(before) + n)) for n, role in enumerate(roles)]
        self._require(asked, self._render([*before, *asked]))

    def _require(self, stand_ins: Messages, text: str) -> None:
        # one search for all, because a search for each would take the square of their number
        found = set(re.findall(rf"{self._mark}x\d+x", text))
        for role, stand_in in stand_ins:
            if stand_in not in found:
                raise InvalidParameter(
                    "messages", f"this model's template leaves out the message of role {role!r}"
                )

    def _stand_ins(self, roles: Sequence[str]) -> list[tuple[str, str]]:
        return [(role, self._stand_in(n)) for n, role in enumerate(roles)]

    def _stand_in(self, number: int) -> str:
        # a number within, so that none is a part of another
        return f"{self._mark}x{number}x"

    def _render(self, messages: Messages, *, answer: bool = True) -> str:
        """Render messages, ready for an answer; an answer that has begun is left open."""
        role, content = messages[-1] if messages else ("", "")
        if not (answer and role == "assistant"):
            return self._apply(messages, answer=answer)
        # the template's end of an answer comes after the mark
        marked = [*messages[:-1], (role, f"{content}{self._mark}")]
        text, found, _ = self._apply(marked, answer=False).rpartition(self._mark)
        if not found:
            raise InvalidParameter("messages", "this model's template leaves answers out")
        return text

    def _apply(self, messages: Messages, *, answer: bool) -> str:
        if not self._tokenizer.chat_template:
            raise ChatTemplateMissing
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=answer
            )
        except jinja2.TemplateError as error:
            raise InvalidParameter("messages", str(error)) from error
        # a template is a program of the model's folder and may fail in any way
        except Exception as error:
            message = f"this model's template fails: {type(error).__name__}: {error}"
            raise InvalidParameter("messages", message) from error
        return text


def _common_prefix(first: str, second: str) -> str:
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((n for n, (a, b) in pairs if a != b), len(first))]
