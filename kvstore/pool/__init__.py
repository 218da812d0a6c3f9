"""Paged memory for many sequences' compact caches, and its exact accounts."""

from kvstore.pool.batch import BatchStep
from kvstore.pool.bounds import pages_bound
from kvstore.pool.pages import PagePool
from kvstore.pool.reservation import Reservation
from kvstore.pool.sequence import SequencePages
from kvstore.pool.storage import page_bytes

__all__ = ["BatchStep", "PagePool", "Reservation", "SequencePages", "page_bytes", "pages_bound"]
