"""The demo, whole, on the tiny model: its figures agree with each other and the saved cache."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvstore.cache import CompactCache
from kvstore.tiers.file import load_cache
from services.demo.document import DOCUMENT_TOKENS, built_in_document, question_about, read_document
from services.runtime.model.served_model import load_tokenizer

_TOKENS = 6


def _run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """The demo's output, its figures, and their folder."""
    folder = tmp_path_factory.mktemp("demo")
    ended = _run_demo(
        *("--model", str(tiny_model), "--max-tokens", str(_TOKENS), "--recovery", "0.8"),
        *("--policy", "coverage", "--json", str(folder / "figures.json")),
        *("--save", str(folder / "cache.safetensors")),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout, json.loads((folder / "figures.json").read_text()), folder


@pytest.fixture(scope="module")
def saved(demo: tuple[str, Any, Path]) -> CompactCache:
    return load_cache(demo[2] / "cache.safetensors")


@pytest.mark.processes
@pytest.mark.parametrize("policy", ["coverage", "full"])
def test_the_figures_agree_with_each_other(demo: tuple[str, Any, Path], policy: str) -> None:
    figures = demo[1][policy]
    memory, heads = figures["prompt_memory"], figures["heads"]
    cached = figures["usage"]["prompt_tokens"] - 1
    assert cached >= DOCUMENT_TOKENS
    assert figures["policy"] == policy
    assert 1 <= figures["usage"]["completion_tokens"] <= _TOKENS
    assert memory["rows_dense"] == 4 * cached
    assert memory["rows_kept"] == sum(head["rows"] for head in heads)
    assert memory["dense_bytes"] == memory["rows_dense"] * 2 * 16 * 4
    assert memory["head_classes"] == Counter(head["head_class"] for head in heads)
    mean = sum(head["attention_coverage"] for head in heads) / len(heads)
    assert memory["attention_coverage"] == pytest.approx(mean)
    # keys and values, and a position per row at least where slots do not tell it
    position = 0 if policy == "full" else 4
    assert memory["resident_bytes"] >= memory["rows_kept"] * (2 * 16 * 4 + position)
    assert memory["wire_bytes"] >= memory["rows_kept"] * (2 * 16 * 4 + 4)
    timings = figures["timings"]
    assert 0 < timings["first_token_seconds"] <= timings["total_seconds"]
    assert 0 < timings["prefill_seconds"] <= timings["first_token_seconds"]


@pytest.mark.processes
def test_the_compact_answer_takes_less_than_the_full_one(demo: tuple[str, Any, Path]) -> None:
    compact, full = (demo[1][name]["prompt_memory"] for name in ("coverage", "full"))
    assert full["rows_kept"] == full["rows_dense"] == compact["rows_dense"]
    assert compact["attention_coverage"] >= 0.8
    for figure in ("rows_kept", "resident_bytes", "wire_bytes"):
        assert compact[figure] < full[figure]


@pytest.mark.processes
def test_the_saved_cache_is_the_one_reported(
    demo: tuple[str, Any, Path], saved: CompactCache
) -> None:
    figures = demo[1]["coverage"]
    assert saved.next_position == figures["usage"]["prompt_tokens"] - 1
    assert saved.fingerprint.policy == "coverage"
    assert json.loads(saved.fingerprint.policy_parameters) == figures["policy_parameters"]
    rows = [count for layer in saved.layers for count in layer.head_row_counts()]
    assert rows == [head["rows"] for head in figures["heads"]]
    assert saved.dense_nbytes == figures["prompt_memory"]["dense_bytes"]
    # the wire adds framing and JSON to the same bytes
    assert saved.nbytes < figures["prompt_memory"]["wire_bytes"] < saved.nbytes * 1.05 + 8192


@pytest.mark.processes
def test_the_page_shows_the_written_figures(demo: tuple[str, Any, Path]) -> None:
    shown, figures, _ = demo
    memory = figures["coverage"]["prompt_memory"]
    assert f"{memory['rows_kept'] / memory['rows_dense']:.1%}" in shown
    for label in ("dense cache", "resident", "wire", "first token", "per token", "head 1"):
        assert label in shown


def test_an_unknown_model_ends_the_demo_in_a_line() -> None:
    ended = _run_demo("--model", "/no/such/folder")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("Error: --model /no/such/folder not found")


def test_the_built_in_document_is_long_enough_and_no_longer(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    document = built_in_document(lambda text: len(tokenizer.encode(text)))
    assert len(tokenizer.encode(document)) >= DOCUMENT_TOKENS
    shorter = "\n\n".join(document.rstrip("\n").split("\n\n")[:-1]) + "\n\n"
    assert len(tokenizer.encode(shorter)) < DOCUMENT_TOKENS


def test_a_document_of_ones_own_and_a_question(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("Mine, ünique.", encoding="utf-8")
    assert read_document(file, len) == "Mine, ünique."
    assert question_about("Mine.", "Whose?") == "Mine.\n\nWhose?"
