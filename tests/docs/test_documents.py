"""The documents stay readable, and their counts count what they say."""

from __future__ import annotations

import pathlib

from checks.documents import faults, pages, parse, percentile

ROOT = pathlib.Path(__file__).parents[2]


def test_the_documents_are_within_the_limits() -> None:
    assert faults(pages(ROOT)) == []


def test_code_blocks_tables_and_headings_are_not_prose() -> None:
    text = "# Title\n\nTwo words.\n\n| a | b |\n\n```text\ncode\n```\n\n    indented\n\n- an item\n"
    page = parse(pathlib.Path("page.md"), text.splitlines())
    assert page.paragraphs == ("Two words.", "an item")
    assert page.code_blocks == 2


def test_text_inside_a_list_item_is_not_code() -> None:
    page = parse(pathlib.Path("page.md"), ["- first", "    goes on", "", "    and on"])
    assert page.code_blocks == 0


def test_long_paragraphs_and_sentences_are_counted() -> None:
    page = parse(pathlib.Path("page.md"), ["word " * 61, "", "One. Two words? Three words here!"])
    assert len(page.long_paragraphs) == 1
    assert page.sentence_lengths == [61, 1, 2, 3]


def test_each_limit_that_is_missed_is_named() -> None:
    lines = [line for _ in range(11) for line in ("word " * 61, "")]
    found = faults([parse(pathlib.Path("page.md"), lines)])
    assert found[0] == "11 paragraphs over 60 words"
    assert found[-2:] == [
        "0.0 code blocks per 1,000 words",
        "90th percentile of sentence length is 61 words",
    ]


def test_the_percentile_is_the_nearest_rank() -> None:
    assert percentile(range(1, 11), 0.9) == 9
    assert percentile([], 0.9) == 0
