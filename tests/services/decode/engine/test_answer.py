"""Answers end at the right token, and their deltas form their text."""

from __future__ import annotations

from collections.abc import Sequence

from headwise import Delta, FinishReason
from services.decode.engine.answer import Answer, EndRules
from services.decode.engine.sampling import Choice
from services.runtime.model.text_stream import TextStream

_BYTES = {1: b"a", 2: b"b", 3: "é".encode()[:1], 4: "é".encode()[1:], 5: b""}


def merge(deltas: Sequence[Delta]) -> Delta:
    """Several deltas as one."""
    return Delta("".join(d.text for d in deltas), tuple(t for d in deltas for t in d.token_ids))


def _decode(token_ids: Sequence[int]) -> str:
    """A byte tokenizer of five tokens; é takes two, 5 is a control token."""
    return b"".join(_BYTES[t] for t in token_ids).decode(errors="replace")


def _answer(
    max_tokens: int = 10, stops: tuple[str, ...] = (), stop_ids: frozenset[int] = frozenset({5})
) -> Answer:
    return Answer(EndRules(max_tokens, stops, stop_ids), TextStream(_decode))


def _push(answer: Answer, *token_ids: int) -> list[Delta]:
    deltas = []
    for token_id in token_ids:
        assert answer.finish_reason is None
        deltas.append(answer.push(Choice(token_id)))
    return deltas


def test_an_end_token_ends_the_answer_counts_and_has_no_text() -> None:
    answer = _answer()
    assert merge(_push(answer, 1, 2, 5)) == Delta("ab", (1, 2, 5))
    assert answer.finish_reason is FinishReason.STOP
    assert answer.tokens == 3


def test_the_length_ends_the_answer_with_what_was_held_back() -> None:
    answer = _answer(max_tokens=2, stops=("bab",))
    # b may begin the stop text until no token can follow
    assert _push(answer, 1, 2) == [Delta("a", (1,)), Delta("b", (2,))]
    assert answer.finish_reason is FinishReason.LENGTH


def test_a_character_cut_by_the_length_comes_as_a_replacement() -> None:
    assert merge(_push(_answer(max_tokens=2), 1, 3)).text == "a\ufffd"


def test_a_stop_text_over_several_tokens_is_not_shown() -> None:
    answer = _answer(stops=("ba",))
    assert merge(_push(answer, 1, 2, 1)) == Delta("a", (1, 2, 1))
    assert answer.finish_reason is FinishReason.STOP


def test_a_stop_text_at_the_last_token_counts_as_a_stop() -> None:
    answer = _answer(max_tokens=2, stops=("b",))
    assert merge(_push(answer, 1, 2)).text == "a"
    assert answer.finish_reason is FinishReason.STOP


def test_text_held_back_before_an_end_token_is_shown() -> None:
    assert merge(_push(_answer(stops=("bb",)), 1, 2, 5)).text == "ab"


def test_a_character_completes_with_its_last_token() -> None:
    assert [d.text for d in _push(_answer(), 3, 4, 1)] == ["", "é", "a"]
