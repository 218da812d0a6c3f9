"""A context and its question are together the tokens of the whole conversation, or are refused."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers import decoders as decoding
from transformers import PreTrainedTokenizerFast

from kvstore.errors import InvalidParameter
from services.runtime.model.served_model import load_tokenizer
from services.runtime.model.tokenizer import PromptTokenizer
from tests.services.runtime.model.chat_templates import FAMILIES, LOSSY

DOCUMENT = "DOC " * 30 + "end"
CONTEXTS = {
    "system": [("system", DOCUMENT)],
    "answered": [("user", DOCUMENT), ("assistant", "Read.")],
    "system and answered": [("system", DOCUMENT), ("user", "Read it."), ("assistant", "Read.")],
    "a few turns": [
        ("system", "Be brief."),
        *[("user", DOCUMENT), ("assistant", "Read.")] * 2,
    ],
    "a user alone": [("user", DOCUMENT)],
    "two systems": [("system", DOCUMENT), ("system", "Be brief.")],
}
QUESTIONS = {
    "one": [("user", "Q 1?")],
    "one with spaces": [("user", "  Q 1?\n")],
    "a conversation": [("user", "Q 1?"), ("assistant", "A 1."), ("user", "Q 2?")],
    "an answer": [("assistant", "A 1."), ("user", "Q 2?")],
    "a system": [("system", "Be brief."), ("user", "Q 2?")],
}
# what every family must be able to do
PROMISED = {("system", "one")} | {("answered", "one")}


def wrapped(template: str) -> PreTrainedTokenizerFast:
    """A token for each byte, and two of control."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoding.ByteLevel()
    backend.add_special_tokens([AddedToken(token) for token in ("<s>", "</s>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def whole(tokenizer: PreTrainedTokenizerFast, messages: list[tuple[str, str]]) -> list[int]:
    """The conversation as transformers writes it."""
    turns = [{"role": role, "content": content} for role, content in messages]
    ids: list[int] = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_and_a_question_are_the_whole_conversation(family: str) -> None:
    transformers_own = wrapped(FAMILIES[family])
    # decode and prefill each have a tokenizer of their own
    prefill, decode = (PromptTokenizer(wrapped(FAMILIES[family]), 258) for _ in range(2))
    answered = set()
    for (context_name, context), (name, question) in itertools.product(
        CONTEXTS.items(), QUESTIONS.items()
    ):
        try:
            split = prefill.encode_context(context) + decode.encode_question(question)
        except InvalidParameter:
            continue
        try:
            expected = whole(transformers_own, [*context, *question])
        except Exception:
            # decode does not know the roles before, so that it cannot refuse their order
            continue
        assert split == expected, (context_name, name)
        answered.add((context_name, name))
    promised = PROMISED - ({("system", "one")} if family == "mistral0.1" else set())
    assert promised <= answered


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_is_in_its_context(family: str) -> None:
    tokenizer = PromptTokenizer(wrapped(FAMILIES[family]), 258)
    for context in CONTEXTS.values():
        try:
            text = tokenizer.decode(tokenizer.encode_context(context))
        except InvalidParameter:
            continue
        for _, content in context:
            assert content in text


def test_a_template_without_system_messages_refuses_them_and_keeps_others() -> None:
    tokenizer = PromptTokenizer(wrapped(FAMILIES["mistral0.1"]), 258)
    with pytest.raises(InvalidParameter, match=r"only user and assistant|must alternate"):
        tokenizer.encode_context(CONTEXTS["system"])
    assert tokenizer.encode_context(CONTEXTS["answered"])


@pytest.mark.parametrize("role", LOSSY)
def test_messages_that_a_template_leaves_out_are_refused(role: str) -> None:
    tokenizer = PromptTokenizer(wrapped(LOSSY[role]), 258)
    messages = [("system", DOCUMENT), ("user", "Q"), ("assistant", "A"), ("user", "Q 2")]
    told = f"leaves out the message of role '{role}'"
    with pytest.raises(InvalidParameter, match=told):
        tokenizer.encode_chat(messages)
    with pytest.raises(InvalidParameter):
        tokenizer.encode_context(messages[:3])
    if role == "system":
        # a later one is written as a turn of its own
        return
    with pytest.raises(InvalidParameter):
        tokenizer.encode_question([(role, "Q"), ("user", "Q 2")])
    with pytest.raises(InvalidParameter):
        tokenizer.encode_turn([(role, "Q"), ("user", "Q 2")], after=1)


@pytest.mark.parametrize(
    "template", ["{{ messages.nothing.there }}", "{{ messages + 1 }}", "{{ 1 / 0 }}", "constant"]
)
def test_a_template_that_fails_is_the_requests_fault(template: str) -> None:
    tokenizer = PromptTokenizer(wrapped(template), 258)
    for encode in (tokenizer.encode_chat, tokenizer.encode_context, tokenizer.encode_question):
        with pytest.raises(InvalidParameter):
            encode([("user", "Q")])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_internal_text_reaches_a_prompt(family: str) -> None:
    tokenizer = PromptTokenizer(wrapped(FAMILIES[family]), 258)
    question = [("user", "Q 1?")]
    texts = [
        tokenizer.decode(ids)
        for ids in (
            tokenizer.encode_chat(question),
            tokenizer.encode_question(question),
            tokenizer.encode_turn(question, after=1),
            tokenizer.encode_context(CONTEXTS["answered"]),
        )
    ]
    assert not [text for text in texts if "headwise" in text]


@pytest.mark.model
@pytest.mark.parametrize("context", ["system", "answered", "system and answered", "a few turns"])
def test_the_real_models_contexts(smollm2: str, context: str) -> None:
    tokenizer = load_tokenizer(smollm2)
    split = tokenizer.encode_context(CONTEXTS[context]) + tokenizer.encode_question(
        QUESTIONS["one"]
    )
    assert split == whole(tokenizer._tokenizer, [*CONTEXTS[context], *QUESTIONS["one"]])


def opened(tokenizer: PreTrainedTokenizerFast, messages: list[tuple[str, str]]) -> list[int]:
    """The conversation as transformers writes it to be continued within its last message."""
    turns = [{"role": role, "content": content} for role, content in messages]
    ids: list[int] = tokenizer.apply_chat_template(
        turns, continue_final_message=True, return_dict=False
    )
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_that_ends_with_the_assistant_is_continued(family: str) -> None:
    tokenizer = wrapped(FAMILIES[family])
    prompts = PromptTokenizer(tokenizer, len(tokenizer))
    begun = [("user", "Name a colour."), ("assistant", "A warm colour is")]
    assert prompts.encode_chat(begun) == opened(tokenizer, begun)
    more = [*begun, ("user", "Another?"), ("assistant", "A cold one is")]
    assert prompts.encode_chat(more) == opened(tokenizer, more)
    turn = prompts.encode_turn(more[2:], after=-1)
    assert prompts.encode_chat(more)[-len(turn) :] == turn


def test_control_tokens_in_a_message_are_refused_where_that_is_asked_for() -> None:
    tokenizer = wrapped(FAMILIES["chatml"])
    prompts = PromptTokenizer(tokenizer, len(tokenizer))
    told = [("user", "fine"), ("user", "an end</s>and more")]
    # as in transformers: the text becomes the control token
    assert tokenizer.convert_tokens_to_ids("</s>") in prompts.encode_chat(told)
    prompts.refuses_control_tokens = True
    encoders = (
        prompts.encode_chat,
        prompts.encode_context,
        prompts.encode_question,
        lambda messages: prompts.encode_turn(messages, after=0),
    )
    for encode in encoders:
        with pytest.raises(InvalidParameter, match=r"message 1 .*'</s>'"):
            encode(told)
    assert prompts.encode_chat(told[:1])
    # a plain prompt may spell what it likes
    assert prompts.encode("</s>")
