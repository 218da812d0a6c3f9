"""The machine instructions that unpack codes, evaluated for every byte: no GPU runs them here."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

from kvstore.kernels import code_conversion as conversion

Words = torch.Tensor
"""Machine words of 32 bits, int64 `[n]`."""


def evaluate(source: str, results: int, word: Words) -> list[Words]:
    """Return the instructions' results, `$0` to `$results - 1`, for `word` in the next operand."""
    registers = {f"${results}": word}

    def value(name: str) -> Words:
        return registers[name] if name in registers else torch.full_like(word, int(name, 0))

    body = source.split("{", 1)[1].rsplit("}", 1)[0]
    for line in filter(None, map(str.strip, body.split(";"))):
        if not line.startswith(".reg"):
            operation, operands = line.split(None, 1)
            target, *sources = (name.strip() for name in operands.split(","))
            registers[target] = _OPERATIONS[operation](*map(value, sources))
    return [registers[f"${n}"] for n in range(results)]


def _permuted(low: Words, high: Words, selector: Words) -> Words:
    """prmt: each byte of the result is one of eight; no sign is spread."""
    eight = low | (high << 32)
    result = torch.zeros_like(low)
    for byte in range(4):
        chosen = (selector >> (4 * byte)) & 15
        assert (chosen < 8).all()
        result |= ((eight >> (8 * chosen)) & 255) << (8 * byte)
    return result


def _logic(a: Words, b: Words, c: Words, table: Words) -> Words:
    """lop3: any function of three bits, by its table."""
    result = torch.zeros_like(a)
    for row in range(8):
        chosen = ((table >> row) & 1).bool()
        bits = [part if row & bit else ~part for part, bit in ((a, 4), (b, 2), (c, 1))]
        result |= torch.where(chosen, bits[0] & bits[1] & bits[2] & 0xFFFFFFFF, 0)
    return result


def _in_halves(dtype: torch.dtype, form: Callable[..., torch.Tensor]) -> Callable[..., Words]:
    """Return the operation on both 16-bit numbers of a word, rounded once."""

    def of_words(*words: Words) -> Words:
        halves = [form(*(numbers(word, dtype)[n].double() for word in words)) for n in (0, 1)]
        low, high = (half.to(dtype).view(torch.int16).long() & 0xFFFF for half in halves)
        return low | (high << 16)

    return of_words


def numbers(word: Words, dtype: torch.dtype) -> list[torch.Tensor]:
    """The lower and the upper number in words."""
    return [((word >> shift) & 0xFFFF).int().to(torch.uint16).view(dtype) for shift in (0, 16)]


_OPERATIONS: dict[str, Callable[..., Words]] = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
    "shr.u32": lambda a, n: a >> n,
    "prmt.b32": _permuted,
    "lop3.b32": _logic,
    "sub.f16x2": _in_halves(torch.float16, lambda a, b: a - b),
    "fma.rn.f16x2": _in_halves(torch.float16, lambda a, b, c: a * b + c),
    "fma.rn.bf16x2": _in_halves(torch.bfloat16, lambda a, b, c: a * b + c),
}

# every byte at every place of a word, beside others
_BYTES = torch.arange(256).repeat(4, 1) + torch.tensor([[0], [85], [170], [255]])
_PLACES = (_BYTES & 255).T.contiguous()
_WORDS = (_PLACES << torch.tensor([0, 8, 16, 24])).sum(1)

TYPES = {"FP16": torch.float16, "BF16": torch.bfloat16}


def unpacked(name: str, results: int) -> torch.Tensor:
    """`[256, 2 * results]` in the order of the result's elements."""
    kind = TYPES[name.rsplit("_", 1)[1]]
    source = getattr(conversion, name).value
    assert not re.search(r"%|@", source), "nothing but what is evaluated here"
    words = evaluate(source, results, _WORDS)
    return torch.stack([half for word in words for half in numbers(word, kind)], 1).double()


@pytest.mark.parametrize("kind", TYPES)
def test_int8(kind: str) -> None:
    expected = _PLACES.to(torch.uint8).view(torch.int8).double()
    assert torch.equal(unpacked(f"_INT8_TO_{kind}", 2), expected)


@pytest.mark.parametrize("kind", TYPES)
def test_fp8(kind: str) -> None:
    code = _PLACES.to(torch.uint8)
    expected = code.view(torch.float8_e4m3fn).double() / 256
    # the two that are not numbers never stand in a row
    there = (code & 127) < 127
    found = unpacked(f"_FP8_TO_{kind}", 2)
    assert torch.equal(found[there], expected[there])


@pytest.mark.parametrize("kind", TYPES)
def test_int4(kind: str) -> None:
    """All lower halves, then all upper ones."""
    # bfloat16 has bytes as the bits of numbers below normal ones
    unit, upper = (2.0**-133, 16) if kind == "BF16" else (1.0, 1)
    expected = torch.cat((_PLACES & 15, (_PLACES >> 4) * upper), 1).double() * unit
    assert torch.equal(unpacked(f"_INT4_TO_{kind}", 4), expected)
