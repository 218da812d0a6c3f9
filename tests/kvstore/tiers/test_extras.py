"""The shared stores' clients are extras, asked for by name when they are missing."""

from __future__ import annotations

import sys

import pytest

from kvstore.errors import InvalidParameter
from kvstore.tiers.mooncake_client import MooncakeAddress, connect_mooncake
from kvstore.tiers.redis_client import RedisAddress, connect_redis


def test_a_missing_redis_client_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(InvalidParameter, match=r"headwise\[redis\]"):
        connect_redis(RedisAddress("redis://127.0.0.1"))


def test_a_missing_mooncake_client_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mooncake.store", None)
    with pytest.raises(InvalidParameter, match=r"headwise\[mooncake\]"):
        connect_mooncake(MooncakeAddress("127.0.0.1:1", "http://127.0.0.1:2/metadata"))
