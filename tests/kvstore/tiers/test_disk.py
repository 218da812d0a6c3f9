"""Files: torn ones are misses, and what is on disk outlives the process in its order of use."""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
from collections.abc import Callable, Iterator

import pytest

from kvstore.errors import InvalidParameter
from kvstore.tiers.base import Hit, Miss, MissReason, PutStatus
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.ledger import Budget
from kvstore.wire import WireLimits
from tests.kvstore.tiers.clock import Clock
from tests.kvstore.wire.caches import numbered, same, two_layers

CACHE, _ = two_layers("float16")
CACHES = {
    ContentKey.of(cache.fingerprint, "tenant"): cache
    for cache in (numbered(CACHE, number) for number in range(4))
}
KEYS = tuple(CACHES)
DEADLINE = Deadline.after(3600)


@pytest.fixture
def open_tier(tmp_path: pathlib.Path, clock: Clock) -> Iterator[Callable[..., DiskTier]]:
    """Opens the same folder again, as a process that starts would."""
    opened: list[DiskTier] = []

    def reopen(total_bytes: int = 1 << 20, **options: object) -> DiskTier:
        while opened:
            opened.pop().close()
        opened.append(DiskTier(tmp_path, Budget(total_bytes), clock=clock, **options))
        return opened[0]

    yield reopen
    while opened:
        opened.pop().close()


def put(tier: DiskTier, key: ContentKey, lifetime_seconds: float | None = None) -> PutStatus:
    return tier.put(key, CACHES[key], lifetime_seconds, DEADLINE).status


def got(tier: DiskTier, key: ContentKey) -> MissReason | None:
    """Return the reason of a miss; None for a hit that is equal to the bit."""
    found = tier.get(key, CACHES[key].fingerprint, DEADLINE)
    if isinstance(found, Hit):
        assert same(found.cache, CACHES[key])
        return None
    return found.reason


def file_of(folder: pathlib.Path) -> pathlib.Path:
    (path,) = folder.glob("*/*.safetensors")
    return path


def test_a_torn_file_is_a_miss_and_goes(
    tmp_path: pathlib.Path, open_tier: Callable[..., DiskTier]
) -> None:
    put(open_tier(), KEYS[0])
    whole = file_of(tmp_path).read_bytes()
    for length in range(0, len(whole), 997):
        file_of(tmp_path).write_bytes(whole[:length])
        tier = open_tier()
        assert got(tier, KEYS[0]) is MissReason.CORRUPT
        assert list(tmp_path.glob("*/*")) == []
        assert got(tier, KEYS[0]) is MissReason.CORRUPT
        assert tier.bytes_in_use(None, DEADLINE) == 0
        put(tier, KEYS[0])


def test_a_changed_byte_is_a_miss(
    tmp_path: pathlib.Path, open_tier: Callable[..., DiskTier]
) -> None:
    put(open_tier(), KEYS[0])
    changed = bytearray(file_of(tmp_path).read_bytes())
    changed[-1] ^= 1
    file_of(tmp_path).write_bytes(changed)
    assert got(open_tier(), KEYS[0]) is MissReason.CORRUPT


def test_another_format_is_a_miss_by_name(
    tmp_path: pathlib.Path, open_tier: Callable[..., DiskTier]
) -> None:
    put(open_tier(), KEYS[0])
    path = file_of(tmp_path)
    later = path.read_bytes().replace(rb"\"format_version\":1", rb"\"format_version\":9")
    path.write_bytes(later)
    assert got(open_tier(), KEYS[0]) is MissReason.OTHER_FORMAT


def test_a_cache_above_the_size_limit_is_a_miss(open_tier: Callable[..., DiskTier]) -> None:
    put(open_tier(), KEYS[0])
    limits = WireLimits(max_cache_bytes=CACHE.nbytes - 1)
    assert got(open_tier(limits=limits), KEYS[0]) is MissReason.CORRUPT


def test_the_order_of_use_survives_a_restart(
    tmp_path: pathlib.Path, open_tier: Callable[..., DiskTier], clock: Clock
) -> None:
    tier = open_tier()
    for key in KEYS[:3]:
        put(tier, key)
        clock.advance(10)
    assert got(tier, KEYS[0]) is None
    size = _one_size(tmp_path)
    tier = open_tier(total_bytes=3 * size)
    assert put(tier, KEYS[3]) is PutStatus.STORED
    assert [got(tier, key) for key in KEYS] == [None, MissReason.EVICTED, None, None]


def test_a_smaller_budget_holds_from_the_start(
    tmp_path: pathlib.Path, open_tier: Callable[..., DiskTier], clock: Clock
) -> None:
    tier = open_tier()
    for key in KEYS[:3]:
        put(tier, key)
        clock.advance(10)
    tier = open_tier(total_bytes=_one_size(tmp_path))
    assert tier.bytes_in_use(None, DEADLINE) == _one_size(tmp_path)
    assert [got(tier, key) for key in KEYS[:3]] == [MissReason.EVICTED, MissReason.EVICTED, None]


def test_expiry_survives_a_restart(
    tmp_path: pathlib.Path, open_tier: Callable[..., DiskTier], clock: Clock
) -> None:
    put(open_tier(), KEYS[0], 50)
    assert got(open_tier(), KEYS[0]) is None
    clock.advance(60)
    assert got(open_tier(), KEYS[0]) is MissReason.EXPIRED
    assert list(tmp_path.glob("*/*")) == []


def test_leftovers_of_a_crash_are_swept_and_strangers_are_left(
    tmp_path: pathlib.Path, open_tier: Callable[..., DiskTier]
) -> None:
    put(open_tier(), KEYS[0])
    leftover = tmp_path / "tenant" / f".{KEYS[1].digest}-0.safetensors.abc123"
    strangers = [tmp_path / "tenant" / name for name in ("notes.txt", ".notes", "a.safetensors")]
    for path in (leftover, *strangers):
        path.write_bytes(b"half a cache")
    assert got(open_tier(), KEYS[0]) is None
    assert not leftover.exists()
    assert all(stranger.exists() for stranger in strangers)


def test_a_folder_has_one_owner(tmp_path: pathlib.Path, open_tier: Callable[..., DiskTier]) -> None:
    open_tier()
    with pytest.raises(InvalidParameter, match="another process"):
        DiskTier(tmp_path, Budget(1))


def test_a_pinned_cache_stays(tmp_path: pathlib.Path, open_tier: Callable[..., DiskTier]) -> None:
    put(open_tier(), KEYS[0])
    tier = open_tier(total_bytes=2 * _one_size(tmp_path))
    assert tier.pin(KEYS[0])
    assert not tier.pin(KEYS[1])
    put(tier, KEYS[1])
    put(tier, KEYS[2])
    assert [got(tier, key) for key in KEYS[:3]] == [None, MissReason.EVICTED, None]
    assert tier.pin(KEYS[2])
    assert put(tier, KEYS[3]) is PutStatus.FULL
    tier.unpin(KEYS[0])
    assert put(tier, KEYS[3]) is PutStatus.STORED
    assert tier.evictions == 2


def test_a_full_disk_is_full_and_nothing_is_left(
    tmp_path: pathlib.Path, open_tier: Callable[..., DiskTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    tier = open_tier()
    monkeypatch.setattr(os, "fsync", no_space)
    assert put(tier, KEYS[0]) is PutStatus.FULL
    monkeypatch.undo()
    assert list(tmp_path.glob("*/*")) == []
    assert got(tier, KEYS[0]) is MissReason.ABSENT


def test_a_folder_that_went_away_is_unavailable_or_evicted(
    tmp_path: pathlib.Path, open_tier: Callable[..., DiskTier]
) -> None:
    tier = open_tier()
    put(tier, KEYS[0])
    file_of(tmp_path).unlink()
    assert got(tier, KEYS[0]) is MissReason.EVICTED
    (tmp_path / "tenant").rmdir()
    (tmp_path / "tenant").write_text("not a folder")
    assert put(tier, KEYS[0]) is PutStatus.UNAVAILABLE


def test_a_quota_evicts_within_its_namespace_alone(tmp_path: pathlib.Path, clock: Clock) -> None:
    small = {
        key: dataclasses.replace(cache, layers=cache.layers[:1]) for key, cache in CACHES.items()
    }
    probe = DiskTier(tmp_path / "probe", Budget(1 << 20))
    probe.put(KEYS[0], small[KEYS[0]], None, DEADLINE)
    size = probe.bytes_in_use(None, DEADLINE)
    probe.close()
    tier = DiskTier(tmp_path / "disk", Budget(1 << 20, {"tenant": size}), clock=clock)
    other = ContentKey.of(CACHES[KEYS[0]].fingerprint, "other")
    small[other] = small[KEYS[0]]
    for key in (other, KEYS[0], KEYS[1]):
        assert tier.put(key, small[key], None, DEADLINE).stored
    assert isinstance(tier.get(other, small[other].fingerprint, DEADLINE), Hit)
    evicted = tier.get(KEYS[0], small[KEYS[0]].fingerprint, DEADLINE)
    assert evicted == Miss(MissReason.EVICTED)
    assert put(tier, KEYS[0]) is PutStatus.OVER_QUOTA
    assert isinstance(tier.get(KEYS[1], small[KEYS[1]].fingerprint, DEADLINE), Hit)
    tier.close()


def _one_size(folder: pathlib.Path) -> int:
    return max(path.stat().st_size for path in folder.glob("*/*.safetensors"))


def test_a_disk_that_became_read_only_still_gives_its_caches(
    open_tier: Callable[..., DiskTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = open_tier()
    put(tier, KEYS[0])

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    assert got(tier, KEYS[0]) is None
