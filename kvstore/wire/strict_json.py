"""JSON from strangers: nothing missing, nothing doubled, nothing extra, every type checked."""

from __future__ import annotations

import json
import math

from kvstore.errors import CorruptCache


class ObjectReader:
    """One JSON object whose members are taken by name, each exactly once.

    `where` names the object in messages. Every fault is a `CorruptCache`.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise CorruptCache(f"{where} is not a JSON object")
        self._members: dict[str, object] = dict(value)
        self._where = where

    @classmethod
    def parse(cls, text: bytes, where: str) -> ObjectReader:
        """Read UTF-8 JSON; duplicate keys, NaN and infinities are refused."""
        try:
            value = json.loads(
                text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant
            )
        # RecursionError: brackets nested a hundred thousand deep
        except (ValueError, RecursionError) as error:
            raise CorruptCache(f"{where} is not valid JSON") from error
        return cls(value, where)

    def names(self) -> tuple[str, ...]:
        """The members that have not been read."""
        return tuple(self._members)

    def take(self, key: str) -> object:
        """The member as it is."""
        if key not in self._members:
            raise CorruptCache(f"{self._where} lacks {key}")
        return self._members.pop(key)

    def text(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str) or not _is_unicode(value):
            raise self._fault(key)
        return value

    def flag(self, key: str) -> bool:
        value = self.take(key)
        if not isinstance(value, bool):
            raise self._fault(key)
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """A whole number within the inclusive bounds."""
        return self._whole(key, self.take(key), low, high)

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        """A whole number within the inclusive bounds, or null."""
        value = self.take(key)
        return None if value is None else self._whole(key, value, low, high)

    def number(self, key: str, low: float, high: float) -> float:
        """A number within the inclusive bounds; whole numbers may lack their fraction."""
        return self._real(key, self.take(key), low, high)

    def items(self, key: str) -> list[object]:
        value = self.take(key)
        if not isinstance(value, list):
            raise self._fault(key)
        return value

    def flags(self, key: str) -> tuple[bool, ...]:
        values = self.items(key)
        if not all(isinstance(value, bool) for value in values):
            raise self._fault(key)
        return tuple(value is True for value in values)

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        return tuple(self._whole(key, value, low, high) for value in self.items(key))

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        return tuple(self._real(key, value, low, high) for value in self.items(key))

    def objects(self, key: str) -> tuple[ObjectReader, ...]:
        """The members of an array, each an object."""
        return tuple(
            ObjectReader(value, f"{self._where}.{key}[{i}]")
            for i, value in enumerate(self.items(key))
        )

    def member(self, key: str) -> ObjectReader:
        return ObjectReader(self.take(key), f"{self._where}.{key}")

    def close(self) -> None:
        """Raise an error if members have not been read."""
        if self._members:
            raise CorruptCache(f"{self._where} has unknown members")

    def _whole(self, key: str, value: object, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._fault(key)
        return value

    def _real(self, key: str, value: object, low: float, high: float) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._fault(key)
        # 1e999 parses to infinity; whole numbers too large for a float fail the bounds first
        if not low <= value <= high or not math.isfinite(value):
            raise self._fault(key)
        return float(value)

    def _fault(self, key: str) -> CorruptCache:
        return CorruptCache(f"{self._where}.{key} has the wrong type or is out of bounds")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate key")
    return members


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
