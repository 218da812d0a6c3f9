"""Peers that do not fit each other are told apart by what differs."""

from __future__ import annotations

import dataclasses

import pytest

from headwise.v1 import cache_pb2
from services.doctor.finding import Level
from services.doctor.peers import Peer, compare

_MODEL = {
    "model_id": "one",
    "weights_digest": "a" * 64,
    "tokenizer_digest": "b" * 64,
    "dtype": "float32",
}
_VERSIONS = {"headwise": "1", "torch": "2", "transformers": "3", "cache_formats": (1, 2)}
_PREFILL = Peer(
    "p:1", "prefill", cache_pb2.ModelFingerprint(**_MODEL), cache_pb2.Versions(**_VERSIONS)
)


def _decode(**other: object) -> Peer:
    model = {name: other.get(name, value) for name, value in _MODEL.items()}
    versions = {name: other.get(name, value) for name, value in _VERSIONS.items()}
    return Peer(
        "d:1", "decode", cache_pb2.ModelFingerprint(**model), cache_pb2.Versions(**versions)
    )


def _worst(*peers: Peer) -> tuple[set[Level], str]:
    findings = list(compare(peers))
    return {finding.level for finding in findings}, " ".join(f.found for f in findings)


def test_equal_peers_fit_whatever_they_are_called() -> None:
    assert _worst(_PREFILL, _decode(model_id="two"))[0] == {Level.OK}
    assert _worst(_PREFILL) == (set(), "")


@pytest.mark.parametrize(
    ("field", "value"),
    [("weights_digest", "c" * 64), ("tokenizer_digest", "c" * 64), ("dtype", "bfloat16")],
)
def test_another_model_is_a_problem_by_field(field: str, value: str) -> None:
    levels, found = _worst(_PREFILL, _decode(**{field: value}))
    assert levels == {Level.PROBLEM}
    assert field in found


def test_formats_in_common_are_enough() -> None:
    assert Level.PROBLEM not in _worst(_PREFILL, _decode(cache_formats=(2, 3)))[0]
    assert Level.PROBLEM in _worst(_PREFILL, _decode(cache_formats=(3,)))[0]


@pytest.mark.parametrize("name", ["headwise", "torch", "transformers"])
def test_another_version_is_a_warning(name: str) -> None:
    levels, found = _worst(_PREFILL, _decode(**{name: "9"}))
    assert levels == {Level.OK, Level.WARNING}
    assert f"{name} {_VERSIONS[name]} and 9" in found


def test_each_is_held_against_the_first() -> None:
    third = dataclasses.replace(_decode(dtype="float16"), target="e:1")
    problems = [f for f in compare((_PREFILL, _decode(), third)) if f.level is Level.PROBLEM]
    assert [finding.subject for finding in problems] == ["p:1 and e:1"]
