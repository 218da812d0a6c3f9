"""Content keys: equal for interchangeable caches, different for all others, in every process."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from kvstore.cache import Fingerprint, ModelFingerprint, digest_tokens
from kvstore.errors import InvalidParameter
from kvstore.row_codecs import RowCodec
from kvstore.tiers.content_key import ContentKey

MODEL = ModelFingerprint("model", "main", "a" * 64, "b" * 64, "float16")
FINGERPRINT = Fingerprint(MODEL, digest_tokens([1, 2, 3]), "coverage", '{"recovery":0.9}')

_IN_ANOTHER_PROCESS = """
from kvstore.tiers.content_key import ContentKey
from tests.kvstore.tiers.test_content_key import FINGERPRINT
print(ContentKey.of(FINGERPRINT, "tenant").digest)
"""


def test_another_process_with_another_hash_seed_makes_the_same_key() -> None:
    ours = ContentKey.of(FINGERPRINT, "tenant").digest
    said = subprocess.run(
        [sys.executable, "-c", _IN_ANOTHER_PROCESS],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert said.stdout.strip() == ours


def test_the_key_stays_what_it_was_in_earlier_releases() -> None:
    # stores outlive releases: if this changes, so must the recipe's number
    assert ContentKey.of(FINGERPRINT).digest == (
        "242e589449d4d96cf9e046d8d1aed7633893e9100879133a6cd2ecc504d7bd93"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"token_digest": digest_tokens([1, 2, 4])},
        {"policy": "full"},
        {"policy_parameters": "{}"},
        {"format_version": 2},
        {"model": dataclasses.replace(MODEL, weights_digest="c" * 64)},
        {"model": dataclasses.replace(MODEL, tokenizer_digest="c" * 64)},
        {"model": dataclasses.replace(MODEL, dtype="float32")},
    ],
)
def test_caches_that_differ_have_different_keys(change: dict[str, object]) -> None:
    other = dataclasses.replace(FINGERPRINT, **change)
    assert ContentKey.of(other).digest != ContentKey.of(FINGERPRINT).digest


def test_tenants_and_codecs_have_keys_of_their_own() -> None:
    keys = [
        ContentKey.of(FINGERPRINT.coded_as(RowCodec.parse(codec)), namespace).digest
        for namespace in ("a", "b")
        for codec in ("model", "int8")
    ]
    assert len(set(keys)) == 4


def test_names_of_the_same_weights_do_not_matter() -> None:
    renamed = dataclasses.replace(MODEL, model_id="elsewhere", revision="v2")
    other = dataclasses.replace(FINGERPRINT, model=renamed)
    assert ContentKey.of(other) == ContentKey.of(FINGERPRINT)


@pytest.mark.parametrize("namespace", ["", "..", ".a", "a/b", "a" * 65, "a b", "ü", "a\n"])
def test_a_namespace_that_could_leave_its_folder_is_refused(namespace: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        ContentKey(namespace, "0" * 64)
    assert caught.value.field == "namespace"


@pytest.mark.parametrize("digest", ["", "0" * 63, "A" * 64, "../" + "0" * 61])
def test_a_digest_is_64_lower_case_hex_digits(digest: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        ContentKey("tenant", digest)
    assert caught.value.field == "digest"
