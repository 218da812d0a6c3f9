"""Encoding, chat formats and token classes, on small tokenizers of both families."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from tokenizers import decoders as decoding
from transformers import PreTrainedTokenizerFast

from kvstore.errors import InvalidParameter
from kvstore.rules import TokenClass
from services.runtime.model.model_errors import ChatTemplateMissing, ModelRefused
from services.runtime.model.tokenizer import PromptTokenizer

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}"
    "{% endif %}<s>[INST] {{ m['content'] }} [/INST]{% endfor %}"
)


def _wrapped(template: str | None = _TEMPLATE) -> PreTrainedTokenizerFast:
    """A token per byte, `<s>` and `</s>`, and a control token without a role."""
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(_ALPHABET)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoding.ByteLevel()
    backend.add_special_tokens([AddedToken(t) for t in ("<s>", "</s>", "<|tool|>")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    wrapped.chat_template = template
    return wrapped


def _tokenizer(template: str | None = _TEMPLATE) -> PromptTokenizer:
    return PromptTokenizer(_wrapped(template), vocabulary_size=300)


def _marked(tokenizer: PromptTokenizer, text: str, kind: TokenClass) -> str:
    """The characters of an ASCII text whose tokens are of this class."""
    ids = tokenizer.encode(text)[1:]
    classes = tokenizer.classify(ids).tolist()
    return "".join(c for c, found in zip(text, classes, strict=True) if found & kind)


def test_a_prompt_starts_with_the_tokenizers_own_bos() -> None:
    ids = _tokenizer().encode("Grüße")
    assert ids == _wrapped()("Grüße").input_ids
    assert ids[0] == 256
    assert _tokenizer().decode(ids) == "Grüße"


def test_padding_and_truncation_of_the_wrapper_do_not_reach_a_prompt() -> None:
    wrapped = _wrapped()
    wrapped.backend_tokenizer.enable_truncation(4)
    wrapped.backend_tokenizer.enable_padding(length=50)
    assert len(PromptTokenizer(wrapped, 300).encode("seven c")) == 8


def test_a_chat_has_one_bos_and_the_templates_form() -> None:
    tokenizer = _tokenizer()
    ids = tokenizer.encode_chat([("user", "hi")])
    assert ids.count(256) == 1
    assert tokenizer.decode(ids) == "[INST] hi [/INST]"


def test_a_chat_without_a_template_is_the_requests_fault() -> None:
    with pytest.raises(ChatTemplateMissing, match="no chat template"):
        _tokenizer(None).encode_chat([("user", "hi")])


def test_messages_that_the_template_rejects_are_the_requests_fault() -> None:
    with pytest.raises(InvalidParameter, match="no tools"):
        _tokenizer().encode_chat([("tool", "hi")])


def test_a_tokenizer_without_a_backend_is_refused() -> None:
    with pytest.raises(ModelRefused, match=r"tokenizer\.json"):
        PromptTokenizer(object(), 10)


def test_control_tokens_are_special_with_or_without_a_role() -> None:
    classes = _tokenizer().classes
    assert classes.dtype == torch.uint8
    assert torch.nonzero(classes & TokenClass.SPECIAL).flatten().tolist() == [256, 257, 258]


def test_the_table_covers_the_models_padded_vocabulary() -> None:
    assert _tokenizer().classes.shape == (300,)
    assert _tokenizer().classify([299]).tolist() == [TokenClass.NONE]


def test_punctuation_and_white_space_are_punctuation() -> None:
    text = "Hi, you!\nA_b = 3; ok"
    assert _marked(_tokenizer(), text, TokenClass.PUNCTUATION) == ", !\n_ = ; "
    assert _marked(_tokenizer(), text, TokenClass.SPECIAL) == ""


def test_markers_spelled_out_in_the_template_are_special() -> None:
    text = "a [INST] b [/INST] c[INST][INST] [inst] <<SYS>>"
    marked = _marked(_tokenizer(), text, TokenClass.SPECIAL)
    assert marked == "[INST][/INST][INST][INST]"


def test_markers_of_other_templates_are_ordinary_text() -> None:
    assert _marked(_tokenizer("{{ messages }}"), "a [INST] b", TokenClass.SPECIAL) == ""


def test_no_tokens_have_no_classes() -> None:
    assert _tokenizer().classify([]).shape == (0,)


@pytest.mark.parametrize("token_id", [-1, 300])
def test_an_id_outside_the_vocabulary_is_the_requests_fault(token_id: int) -> None:
    with pytest.raises(InvalidParameter, match="token_ids"):
        _tokenizer().classify([5, token_id])


def test_a_sentencepiece_space_is_punctuation_and_markers_across_it_are_found() -> None:
    pieces = ["\u2581", "\u2581,", "\u2581a", "###", "\u2581Response", ":", "<unk>"]
    backend = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, "<unk>"))
    backend.decoder = decoding.Metaspace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend)
    wrapped.chat_template = "### Response:"
    tokenizer = PromptTokenizer(wrapped, len(pieces))
    special, punctuation = int(TokenClass.SPECIAL), int(TokenClass.PUNCTUATION)
    assert tokenizer.classes.tolist()[:6] == [punctuation] * 2 + [0, punctuation, 0, punctuation]
    marked = (tokenizer.classify([2, 3, 4, 5, 2]) & special).bool().tolist()
    assert marked == [False, True, True, True, False]


def test_the_digest_is_of_the_contents() -> None:
    used = _tokenizer()
    used.encode("anything")
    assert used.digest() == _tokenizer().digest()
    assert used.digest() != _tokenizer("{{ messages }}").digest()
    wrapped = _wrapped()
    wrapped.backend_tokenizer.add_tokens(["one more"])
    assert used.digest() != PromptTokenizer(wrapped, 300).digest()
