"""Heads of safetensors files, with the library itself as the oracle."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from kvstore.errors import CorruptCache
from kvstore.tiers.file import load_cache, save_cache
from kvstore.tiers.safetensors_head import SafetensorsHead, head_bytes, places_of
from kvstore.wire.sections import byte_view
from tests.kvstore.wire.caches import same, two_layers

CACHE, _ = two_layers("bfloat16")
_DTYPES = st.sampled_from((torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.uint8))


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(_DTYPES, st.integers(0, 9))))
def test_the_safetensors_library_reads_our_files(
    wanted: dict[str, tuple[torch.dtype, int]],
) -> None:
    wanted.pop("__metadata__", None)
    tensors = {name: torch.arange(n).to(dtype) for name, (dtype, n) in wanted.items()}
    head = SafetensorsHead(places_of(tensors), {"key": "value"})
    body = b"".join(byte_view(tensors[name]) for name in head.places if tensors[name].numel())
    found = load(head.encode() + body)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert SafetensorsHead.parse(head.encode()) == head


def test_files_of_the_safetensors_library_are_read(tmp_path: pathlib.Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    save_cache(CACHE, ours)
    with safe_open(ours, framework="pt") as file:
        save_file(load_file(ours), theirs, metadata=file.metadata())
    assert same(load_cache(theirs), CACHE)


def test_tensors_need_not_be_aligned(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cache"
    save_cache(CACHE, path)
    whole = path.read_bytes()
    head = SafetensorsHead.parse(whole[: head_bytes(whole)])
    body = whole[head_bytes(whole) :]
    # bytes first, and an odd number of them
    order = sorted(head.places, key=lambda name: head.places[name].dtype.itemsize)
    places, moved = {}, b""
    for name in order:
        old = head.places[name]
        places[name] = type(old)(old.dtype, old.shape, len(moved))
        moved += body[old.begin : old.end]
    assert any(place.begin % place.dtype.itemsize for place in places.values())
    path.write_bytes(SafetensorsHead(places, head.metadata).encode() + moved)
    assert same(load_cache(path), CACHE)


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_garbage_is_corrupt(garbage: bytes) -> None:
    for head in (garbage, len(garbage).to_bytes(8, "little") + garbage):
        with pytest.raises(CorruptCache):
            SafetensorsHead.parse(head)


def _encoded(tensors: dict[str, object], metadata: object = None) -> bytes:
    text = json.dumps({"__metadata__": metadata or {}, **tensors}).encode()
    return len(text).to_bytes(8, "little") + text


def _tensor(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": _tensor([2], [0, 4])},
        {"a": _tensor([2], [8, 0])},
        {"a": _tensor([2], [0])},
        {"a": _tensor([2], [])},
        {"a": _tensor([-1], [0, -4])},
        {"a": _tensor([2], [0, 8], "F8_E4M3")},
        {"a": _tensor([2], [4, 12])},
        {"a": _tensor([1], [0, 4]), "b": _tensor([1], [0, 4])},
        {"a": _tensor([1], [0, 4]), "b": _tensor([1], [5, 9])},
        {"a": _tensor([2**62, 4], [0, 2**66])},
        {"a": {**_tensor([1], [0, 4]), "more": 1}},
        {"a": 7},
    ],
)
def test_places_that_overlap_or_do_not_fit_are_corrupt(tensors: dict[str, object]) -> None:
    SafetensorsHead.parse(_encoded({"a": _tensor([2], [0, 8])}))
    with pytest.raises(CorruptCache):
        SafetensorsHead.parse(_encoded(tensors))


def test_metadata_is_text_and_must_be_there() -> None:
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    for head in (_encoded({}, {"key": 1}), len(text).to_bytes(8, "little") + text):
        with pytest.raises(CorruptCache):
            SafetensorsHead.parse(head)
