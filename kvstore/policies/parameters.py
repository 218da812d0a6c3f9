"""Policy parameters: declared as dataclass fields with bounds, read from JSON values."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from kvstore.errors import InvalidParameter
from kvstore.policies.budget import Budget

_P = TypeVar("_P")
_Reader = Callable[[str, object], object]

# more tokens than any model sees; it keeps sums of parameters far from overflow
MAX_TOKENS = 1 << 24


def flag(default: bool) -> Any:
    """A field that is true or false."""
    return _declare(default, _read_flag)


def tokens(default: int, least: int = 0) -> Any:
    """A field that counts tokens or rows, `least` to `MAX_TOKENS`."""
    return _declare(default, lambda field, value: _read_whole(field, value, least))


def ratio(default: float) -> Any:
    """A field in (0, 1]."""
    return _declare(default, _read_ratio)


def share(default: float) -> Any:
    """A field in [0, 1]."""
    return _declare(default, _read_share)


def budget(default: float) -> Any:
    """A field that says how much a cache may hold (see `Budget`), by default a ratio."""
    return _declare(Budget(ratio=default), _read_budget)


def token_grid(default: tuple[int, ...]) -> Any:
    """A field that lists one or more ascending counts of tokens, each at least 1."""
    return _declare(default, _read_grid)


def from_parameters(kind: type[_P], parameters: Mapping[str, object]) -> _P:
    """Build the dataclass `kind`; `InvalidParameter` names `policy.parameters.<key>`."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in parameters.items():
        name = f"policy.parameters.{key}"
        if key not in fields:
            raise InvalidParameter(name, f"unknown; known: {', '.join(fields) or 'none'}")
        values[key] = fields[key].metadata["read"](name, value)
    return kind(**values)


def to_parameters(policy: Any) -> dict[str, object]:
    """The inverse of `from_parameters`, with JSON's types: lists for tuples."""
    fields = dataclasses.fields(policy)
    return {field.name: _plain(getattr(policy, field.name)) for field in fields}


def _plain(value: object) -> object:
    if isinstance(value, Budget):
        return value.spelled()
    return list(value) if isinstance(value, tuple) else value


def _declare(default: object, read: _Reader) -> Any:
    return dataclasses.field(default=default, metadata={"read": read})


def _read_flag(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidParameter(field, f"must be true or false, not {value!r}")
    return value


def _read_number(field: str, value: object) -> float:
    # bool is an int to python, and a mistake here
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidParameter(field, f"must be a number, not {value!r}")
    # python's integers may be too large to compare as floats
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidParameter(field, f"must be finite, not {value!r}")
    return value


def _read_whole(field: str, value: object, least: int) -> int:
    number = _read_number(field, value)
    # JSON has one kind of number: 32 may arrive as 32.0
    if int(number) != number or not least <= number <= MAX_TOKENS:
        raise InvalidParameter(
            field, f"must be a whole number from {least} to {MAX_TOKENS}, not {value!r}"
        )
    return int(number)


def _read_ratio(field: str, value: object) -> float:
    number = _read_number(field, value)
    if not 0 < number <= 1:
        raise InvalidParameter(field, f"must be above 0 and at most 1, not {value!r}")
    return float(number)


def _read_share(field: str, value: object) -> float:
    number = _read_number(field, value)
    if not 0 <= number <= 1:
        raise InvalidParameter(field, f"must be from 0 to 1, not {value!r}")
    return float(number)


def _read_budget(field: str, value: object) -> Budget:
    if not isinstance(value, str):
        return Budget(ratio=_read_ratio(field, value))
    found = Budget.parse(value, MAX_TOKENS)
    if found is None:
        wanted = "a ratio, '<n> rows' or '<n> bytes', KiB, MiB or GiB"
        raise InvalidParameter(field, f"must be {wanted}, not {value!r}")
    return found


def _read_grid(field: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= 64:
        raise InvalidParameter(field, f"must be a list of 1 to 64 numbers, not {value!r}")
    grid = tuple(_read_whole(field, entry, 1) for entry in value)
    if any(a >= b for a, b in itertools.pairwise(grid)):
        raise InvalidParameter(field, f"must ascend, not {value!r}")
    return grid
