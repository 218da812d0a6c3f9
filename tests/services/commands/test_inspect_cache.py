"""`headwise inspect` shows a saved cache, and refuses other files with a reason."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import pytest
from click.testing import CliRunner

from kvstore.cache import CompactCache, Fingerprint, canonical_json, digest_tokens
from kvstore.tiers.file import save_cache
from services.commands import command_line
from services.runtime.model.served_model import ServedModel
from tests.services.decode.engine.engine_parts import load_served, prefill

_TOKENS = 150
_PARAMETERS = {"recovery": 0.6, "floor_rows": 8, "windows": [8, 16]}


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> ServedModel:
    return load_served(tiny_model)


@pytest.fixture(scope="module")
def cache(served: ServedModel) -> CompactCache:
    prompt = served.tokenizer.encode(topics["compound"])[:_TOKENS]
    fingerprint = Fingerprint(
        served.fingerprint, digest_tokens(prompt), "coverage", canonical_json(_PARAMETERS)
    )
    layers = prefill(served, prompt, "coverage", dict(_PARAMETERS))
    return CompactCache(fingerprint, tuple(layers), _TOKENS)


def _inspect(file: Path) -> tuple[int, str]:
    result = CliRunner().invoke(command_line, ["inspect", str(file)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_a_saved_cache_is_shown_with_the_rows_of_every_head(
    cache: CompactCache, tmp_path: Path
) -> None:
    save_cache(cache, tmp_path / "cache.safetensors")
    code, shown = _inspect(tmp_path / "cache.safetensors")
    assert code == 0
    assert cache.fingerprint.model.weights_digest[:12] in shown
    assert f"coverage {cache.fingerprint.policy_parameters}" in shown
    assert f"{_TOKENS} tokens, {cache.rows_kept_ratio:.1%} of the rows" in shown
    for layer in cache.layers:
        for rows in layer.head_row_counts():
            assert f"{rows:>6} {rows / _TOKENS:>4.0%}" in shown


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_a_damaged_file_is_refused_in_one_line(
    cache: CompactCache, tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "cache.safetensors"
    save_cache(cache, file)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    contents = {"cut": whole[:-7], "flipped": flipped, "foreign": b"PK\x03\x04" * 9, "empty": b""}
    file.write_bytes(contents[damage])
    code, shown = _inspect(file)
    assert code == 1
    assert shown.startswith(f"Error: {file}: ")
    assert len(shown.splitlines()) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    code, shown = _inspect(tmp_path / "nothing")
    assert code == 2
    assert "nothing" in shown
