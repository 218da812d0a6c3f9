"""Caches in files: whole or not at all, and readable without this project."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import stat

import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kvstore.cache import CompactCache, LayerShape
from kvstore.errors import CorruptCache, FingerprintMismatch, InvalidParameter, LimitExceeded
from kvstore.tiers import file as file_tier
from kvstore.tiers.file import load_cache, save_cache
from kvstore.wire import WireLimits
from tests.kvstore.wire.caches import caches, fingerprint, same, two_layers

CACHE, _ = two_layers("bfloat16")


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    target = tmp_path / "cache.safetensors"
    save_cache(CACHE, target)
    return target


def rewrite(path: pathlib.Path, metadata: dict[str, str], **tensors: torch.Tensor) -> None:
    """The file again with some metadata and tensors replaced, the digest left as it was."""
    with safe_open(path, framework="pt") as file:
        old = file.metadata()
    save_file({**load_file(path), **tensors}, path, metadata={**old, **metadata})


@settings(max_examples=40, deadline=None)
@given(cache_and_shapes=caches())
def test_a_cache_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    cache_and_shapes: tuple[CompactCache, tuple[LayerShape, ...]],
) -> None:
    target = tmp_path_factory.getbasetemp() / "round_trip.safetensors"
    save_cache(cache_and_shapes[0], target)
    assert same(load_cache(target), cache_and_shapes[0])


def test_safetensors_alone_can_read_the_file(path: pathlib.Path) -> None:
    tensors = load_file(path)
    assert torch.equal(tensors["layers.1.keys"], CACHE.layers[1].keys)
    assert torch.equal(tensors["layers.0.positions"], CACHE.layers[0].positions)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["headwise.header"])
    assert header["tokens"] == CACHE.next_position
    assert header["fingerprint"]["policy"] == CACHE.fingerprint.policy


def test_every_changed_byte_is_noticed(path: pathlib.Path) -> None:
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    # the header's padding is white space, any of which reads the same
    padded_from = len(whole[:header_end].rstrip(b" "))
    for at in (*range(padded_from), *range(header_end, len(whole))):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
        with pytest.raises((CorruptCache, FingerprintMismatch)):
            load_cache(path)


def test_every_truncation_is_noticed(path: pathlib.Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptCache):
            load_cache(path)


def test_a_missing_file_is_file_not_found(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_cache(tmp_path / "none.safetensors")


def test_another_safetensors_file_is_not_a_cache(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(2)}, target)
    with pytest.raises(CorruptCache, match="not a cache"):
        load_cache(target)


def test_tensors_that_differ_from_the_index_are_refused(path: pathlib.Path) -> None:
    whole = path.read_bytes()
    wrong = [
        {"layers.0.keys": torch.zeros(14, 4, dtype=torch.bfloat16)},
        {"layers.0.values": torch.zeros(15, 4)},
        {"layers.0.keys": torch.zeros(60, dtype=torch.bfloat16)},
        {"layers.1.flags": torch.zeros(8, dtype=torch.uint8)},
        {"layers.2.keys": torch.zeros(1)},
    ]
    for tensors in wrong:
        path.write_bytes(whole)
        rewrite(path, {}, **tensors)
        with pytest.raises(CorruptCache):
            load_cache(path)


def test_limits_hold_before_any_tensor_is_read(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = WireLimits(40, 2, CACHE.nbytes)
    assert same(load_cache(path, exact), CACHE)
    # with no memory to be had for tensors, only a refusal on sizes alone can pass
    monkeypatch.setattr(torch, "empty", None)
    for field in ("max_tokens", "max_layers", "max_cache_bytes"):
        lower = dataclasses.replace(exact, **{field: getattr(exact, field) - 1})
        with pytest.raises(LimitExceeded):
            load_cache(path, limits=lower)


def test_another_models_cache_is_refused_by_name(path: pathlib.Path) -> None:
    ours = fingerprint("bfloat16").model
    assert same(load_cache(path, expected_model=ours), CACHE)
    with pytest.raises(FingerprintMismatch) as caught:
        load_cache(path, expected_model=dataclasses.replace(ours, weights_digest="c" * 64))
    assert caught.value.field == "weights_digest"


def test_another_format_is_refused_by_name(path: pathlib.Path) -> None:
    rewrite(path, {"headwise.header": '{"format_version":9}'})
    with pytest.raises(FingerprintMismatch) as caught:
        load_cache(path)
    assert caught.value.field == "format_version"


def test_a_crash_while_writing_leaves_the_old_cache_and_nothing_else(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(descriptor: int) -> None:
        raise OSError("no space")

    other, _ = two_layers("float16")
    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="no space"):
        save_cache(other, path)
    monkeypatch.undo()
    assert same(load_cache(path), CACHE)
    assert os.listdir(path.parent) == [path.name]


def test_file_and_folder_are_synced_around_the_rename(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    replace, sync = os.replace, file_tier._sync

    def watched_sync(target: pathlib.Path) -> None:
        steps.append("folder" if pathlib.Path(target).is_dir() else "file")
        sync(target)

    def watched_replace(source: str, target: pathlib.Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(file_tier, "_sync", watched_sync)
    monkeypatch.setattr(os, "replace", watched_replace)
    save_cache(CACHE, path)
    assert steps == ["file", "rename", "folder"]


def test_only_the_owner_may_read_a_cache(path: pathlib.Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_and_values_in_the_same_memory_are_saved_apart(path: pathlib.Path) -> None:
    layers = tuple(dataclasses.replace(layer, values=layer.keys) for layer in CACHE.layers)
    shared = dataclasses.replace(CACHE, layers=layers)
    save_cache(shared, path)
    assert same(load_cache(path), shared)


@pytest.mark.parametrize(
    "change",
    [
        {"positions": torch.zeros(15, dtype=torch.int32)},
        {"attention_coverage": (0.5, float("nan"), 0.5)},
        {"scores": torch.full((9,), float("inf"))},
        {"values": torch.zeros(15, 4)},
    ],
)
def test_a_cache_that_could_not_be_loaded_is_not_saved(
    path: pathlib.Path, change: dict[str, object]
) -> None:
    layers = (dataclasses.replace(CACHE.layers[0], **change), CACHE.layers[1])
    with pytest.raises(InvalidParameter):
        save_cache(dataclasses.replace(CACHE, layers=layers), path)
    assert same(load_cache(path), CACHE)
