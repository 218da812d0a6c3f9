"""Stop texts are found wherever the borders of the pieces fall."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.decode.engine.stops import StopFinder

# two letters: stop texts overlap each other and themselves all the time
_TEXTS = st.text("ab", max_size=12)
_STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The reference: the whole text, cut where the first stop text begins."""
    found = [text.index(stop) for stop in stops if stop in text]
    return (text[: min(found)], True) if found else (text, False)


@given(parts=st.lists(_TEXTS, max_size=6), stops=_STOPS)
def test_any_splitting_shows_the_text_before_the_first_stop(
    parts: list[str], stops: list[str]
) -> None:
    finder, shown, seen = StopFinder(stops), "", ""
    for part in parts:
        seen += part
        text, stopped = finder.push(part)
        shown += text
        assert stopped == _cut(seen, stops)[1]
        if stopped:
            assert finder.flush() == ""
            break
    else:
        shown += finder.flush()
    assert shown == _cut(seen, stops)[0]


@given(parts=st.lists(_TEXTS, max_size=6), stops=_STOPS)
def test_no_more_is_held_back_than_may_become_a_stop(parts: list[str], stops: list[str]) -> None:
    finder, shown, seen = StopFinder(stops), "", ""
    for part in parts:
        text, stopped = finder.push(part)
        if stopped:
            return
        shown, seen = shown + text, seen + part
        held = seen[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_without_stops_nothing_is_held_back() -> None:
    assert StopFinder(()).push("text") == ("text", False)
