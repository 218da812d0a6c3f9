"""Tiers built from options, and the messages for options that are invalid."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kvstore.errors import InvalidParameter
from kvstore.tiers import Miss, MissReason
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.wire import DEFAULT_LIMITS
from services.prefill.store.store_options import StoreOptions
from services.prefill.store.stores import memory_tier, tiers_below
from services.runtime.process.serve_error import ServeError


def test_nothing_is_below_memory_unless_it_is_named(tmp_path: Path) -> None:
    assert tiers_below(StoreOptions(), DEFAULT_LIMITS) == []
    assert memory_tier(StoreOptions(store_memory_bytes=0)).name == "memory"
    # Redis is asked when it is first used: one that is not there yet is a miss until it is
    options = StoreOptions(store_disk=str(tmp_path), store_redis="redis://127.0.0.1:1")
    assert [tier.name for tier in tiers_below(options, DEFAULT_LIMITS)] == ["disk", "redis"]


def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ServeError, match="--store-disk"):
        tiers_below(StoreOptions(store_disk=str(file)), DEFAULT_LIMITS)


def test_a_folder_of_another_process_is_refused(tmp_path: Path) -> None:
    options = StoreOptions(store_disk=str(tmp_path))
    first = tiers_below(options, DEFAULT_LIMITS)
    with pytest.raises(InvalidParameter, match="folder"):
        tiers_below(options, DEFAULT_LIMITS)
    assert first


def test_an_address_is_refused_without_its_password() -> None:
    options = StoreOptions(store_redis="htp://user:secret@127.0.0.1:6379")
    with pytest.raises(ServeError, match="--store-redis") as caught:
        tiers_below(options, DEFAULT_LIMITS)
    assert "secret" not in str(caught.value)
    cluster = dataclasses.replace(options, store_redis=f"{options.store_redis}?cluster=true")
    with pytest.raises(ServeError, match="--store-redis") as caught:
        tiers_below(cluster, DEFAULT_LIMITS)
    assert "secret" not in str(caught.value)


def test_a_cluster_that_is_not_there_yet_stops_no_start() -> None:
    options = StoreOptions(store_redis="redis://:secret@127.0.0.1:1?cluster=true")
    (tier,) = tiers_below(options, DEFAULT_LIMITS)
    lookup = tier.get(ContentKey("default", "0" * 64), None, Deadline.after(5.0))
    assert isinstance(lookup, Miss)
    assert lookup.reason is MissReason.UNAVAILABLE
    assert "secret" not in lookup.detail
