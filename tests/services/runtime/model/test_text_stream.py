"""Text deltas never split a character, and add up to what decoding everything at once gives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from services.runtime.model.text_stream import TextStream

_EMOJI = "ok 👩‍👩‍👧 你好，世界 — naïve 🇩🇪!"


def _bytes_to_text(token_ids: Sequence[int]) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")


def _sentencepiece() -> Tokenizer:
    """Words with U+2581 for a space, and a token per byte for all else, as Llama 2 has it."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581Hello", "\u2581", "world"]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def test_a_character_is_emitted_with_its_last_byte() -> None:
    stream = TextStream(_bytes_to_text)
    deltas = [stream.push(byte) for byte in "a👩你".encode()]
    assert deltas == ["a", "", "", "", "👩", "", "", "你"]
    assert stream.flush() == ""


def test_deltas_add_up_byte_by_byte() -> None:
    stream = TextStream(_bytes_to_text)
    deltas = [stream.push(byte) for byte in _EMOJI.encode()]
    assert "".join(deltas) + stream.flush() == _EMOJI
    assert not any("\ufffd" in delta for delta in deltas)


def test_an_unfinished_character_is_emitted_by_flush_only() -> None:
    stream = TextStream(_bytes_to_text)
    assert [stream.push(byte) for byte in b"a\xf0\x9f"] == ["a", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_a_character_that_begins_in_the_context_is_emitted_completely() -> None:
    stream = TextStream(_bytes_to_text, context=[*b"before ", *"👩".encode()[:3]])
    assert stream.push("👩".encode()[3]) == "👩"


@pytest.mark.parametrize("prompt", ["a\ufffd", "\ufffd", "a\ufffd\ufffd\ufffd\ufffd", "\ufffd a"])
def test_the_last_character_of_a_prompt_is_not_repeated(prompt: str) -> None:
    for tokens in ("then", "你", "\ufffd", ""):
        stream = TextStream(_bytes_to_text, context=prompt.encode())
        deltas = [stream.push(byte) for byte in tokens.encode()]
        assert "".join(deltas) + stream.flush() == tokens


def test_a_character_that_the_answer_does_not_complete_is_the_prompts() -> None:
    stream = TextStream(_bytes_to_text, context=[*b"before ", *"👩".encode()[:2]])
    assert [stream.push(byte) for byte in b"ok"] == ["o", "k"]


_PIECES = st.sampled_from(
    [b"a", b" ", "\ufffd".encode(), "你".encode(), "👩".encode(), b"\xe4", b"\xbd"]
)


@given(prompt=st.lists(_PIECES, max_size=6), answer=st.lists(_PIECES, max_size=6))
def test_a_prompt_and_its_answer_are_the_text_of_both(
    prompt: list[bytes], answer: list[bytes]
) -> None:
    """The text of all tokens decoded at once tells what the answer's must be."""
    before, after = b"".join(prompt), b"".join(answer)
    stream = TextStream(_bytes_to_text, context=before)
    text = "".join(map(stream.push, after)) + stream.flush()
    whole, known = _bytes_to_text(before + after), _bytes_to_text(before)
    same = next(
        (n for n, (a, b) in enumerate(zip(whole, known, strict=False)) if a != b), len(known)
    )
    assert text == whole[same:]


def test_bytes_that_are_no_text_are_emitted_after_a_limit() -> None:
    stream = TextStream(_bytes_to_text)
    deltas = [stream.push(0xFF) for _ in range(40)]
    assert "".join(deltas) + stream.flush() == "\ufffd" * 40
    assert any(deltas)


def test_byte_fallback_tokens_add_up() -> None:
    tokenizer = _sentencepiece()
    ids = [256, *"你👩é".encode(), 256, 257, 258, *"好".encode()]
    stream = TextStream(tokenizer.decode)
    deltas = [stream.push(token_id) for token_id in ids]
    assert "".join(deltas) + stream.flush() == "Hello你👩é Hello world好"
    assert not any("\ufffd" in delta for delta in deltas)


@pytest.mark.parametrize(("context", "delta"), [((), "Hello"), ((258,), " Hello")])
def test_the_first_word_has_its_space_after_a_context(context: tuple[int, ...], delta: str) -> None:
    assert TextStream(_sentencepiece().decode, context).push(256) == delta
