"""Paged memory for many sequences' compact caches, and its exact accounts."""

from kvstore.pool.batch import BatchStep, ChunkPart, RetentionChunk
from kvstore.pool.bounds import pages_bound
from kvstore.pool.pages import PagePool
from kvstore.pool.reservation import PageCount, Reservation
from kvstore.pool.sequence import SequencePages
from kvstore.pool.storage import metadata_page_bytes, row_page_bytes

__all__ = [
    "BatchStep",
    "ChunkPart",
    "PageCount",
    "PagePool",
    "Reservation",
    "RetentionChunk",
    "SequencePages",
    "metadata_page_bytes",
    "pages_bound",
    "row_page_bytes",
]
