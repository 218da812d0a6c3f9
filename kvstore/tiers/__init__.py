"""Tiers for stored caches: memory, disk, Redis or Valkey, Mooncake. See docs/tiers.md."""

from kvstore.tiers.base import (
    Expected,
    Hit,
    Lookup,
    Miss,
    MissReason,
    PutResult,
    PutStatus,
    Tier,
)
from kvstore.tiers.bounded import BoundedTier
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.ledger import Budget
from kvstore.tiers.memory import MemoryTier
from kvstore.tiers.stack import TierStack, WriteMode

__all__ = [
    "BoundedTier",
    "Budget",
    "DiskTier",
    "Expected",
    "Hit",
    "Lookup",
    "MemoryTier",
    "Miss",
    "MissReason",
    "PutResult",
    "PutStatus",
    "Tier",
    "TierStack",
    "WriteMode",
]
