"""Errors of the cache, as a tree:

KVStoreError
├── InvalidParameter      a policy parameter, budget or option with an invalid value
├── UnknownPolicy         a policy name that is not registered
├── CorruptCache          frames or a file that disagree with their own checksums or sizes
├── LimitExceeded         a size, claimed or real, above what this process allows
├── FingerprintMismatch   a cache made by another model, tokenizer, dtype or format
└── PoolExhausted         no pages left for what was asked
"""

from __future__ import annotations


class KVStoreError(Exception):
    """Root of every error that kvstore raises on account of its caller or its input."""


class InvalidParameter(KVStoreError):
    """A value outside its bounds; `field` is the dotted name the caller used."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class UnknownPolicy(KVStoreError):
    """No policy of this name; `known` lists those there are."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"unknown policy {name!r}; known: {', '.join(known)}")
        self.name = name
        self.known = known


class CorruptCache(KVStoreError):
    """Bytes that are not the cache they claim to be; nothing of them may become visible."""


class LimitExceeded(KVStoreError):
    """A claimed or needed size above the receiver's limit, refused before any allocation."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what} is {size}, the limit is {limit}")
        self.what = what
        self.size = size
        self.limit = limit


class FingerprintMismatch(KVStoreError):
    """A cache that belongs to another model; `field` is the first field that differs."""

    def __init__(self, field: str, ours: str, theirs: str) -> None:
        super().__init__(f"{field} differs: ours is {ours!r}, theirs is {theirs!r}")
        self.field = field
        self.ours = ours
        self.theirs = theirs


class PoolExhausted(KVStoreError):
    """The page pool cannot hold what was asked; sizes in pages."""

    def __init__(self, requested_pages: int, free_pages: int) -> None:
        super().__init__(f"{requested_pages} pages asked, {free_pages} free")
        self.requested_pages = requested_pages
        self.free_pages = free_pages
