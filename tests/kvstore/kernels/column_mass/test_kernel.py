"""The column mass kernel against its definition in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from kvstore.kernels.column_mass import reference
from kvstore.kernels.column_mass.input import ColumnMassInput

kernel = pytest.importorskip("kvstore.kernels.column_mass.kernel")

GROUP, HEADS, SCALE = 2, 2, 0.25
EDGES = (0, 1, 7, 64, 77, 100, 400)
# inputs are exact in every dtype and sums are f32 in all of them: one tolerance
ABSOLUTE, RELATIVE = 2e-5, 2e-5


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt's queries, keys, log-sum-exp and value norms; `far` starts from something."""

    q: torch.Tensor
    k: torch.Tensor
    lse: torch.Tensor
    norms: torch.Tensor
    window: int | None

    @property
    def start(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.rand(self.q.shape[0], len(EDGES), self.k.shape[1] + 5, generator=generator)


def a_prompt(n: int, dtype: torch.dtype, window: int | None = None, size: int = 16) -> Prompt:
    q = (torch.randn(HEADS * GROUP, n, size) * 2).to(dtype)
    k = (torch.randn(HEADS, n, size) * 2).to(dtype)
    distance = torch.arange(n)[:, None] - torch.arange(n)
    logits = q.double() @ k.double().repeat_interleave(GROUP, 0).mT * SCALE
    hidden = (distance < 0) | (distance >= (window or n))
    lse = logits.masked_fill(hidden, -math.inf).logsumexp(-1).float()
    return Prompt(q, k, lse, torch.rand(HEADS, n) + 0.1, window)


def accumulate(
    prompt: Prompt, positions: torch.Tensor, device: torch.device, *, weighted: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the results of kernel and definition for the prompt's rows at `positions`."""
    outcomes = []
    for form, place in ((kernel.column_mass, device), (reference.column_mass, torch.device("cpu"))):
        far = prompt.start.to(place).to(torch.float64 if form is reference.column_mass else None)
        form(
            far,
            ColumnMassInput(
                prompt.q[:, positions].to(place),
                prompt.k.to(place),
                prompt.lse[:, positions].to(place),
                positions,
                edges=EDGES,
                scale=SCALE,
                sliding_window=prompt.window,
                value_norms=prompt.norms.to(place) if weighted else None,
            ),
        )
        outcomes.append(far.cpu())
    return outcomes[0], outcomes[1]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, atol=ABSOLUTE, rtol=RELATIVE)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "value_weighted"])
# the last two have tiles between edges, which need no masks
@pytest.mark.parametrize(
    ("n", "window"),
    [(1, None), (63, 40), (97, None), (97, 5), (97, 63), (300, None), (300, 250)],
)
def test_agrees_with_the_definition(
    n: int, window: int | None, weighted: bool, device: torch.device
) -> None:
    prompt = a_prompt(n, torch.float32, window)
    assert_same(*accumulate(prompt, torch.arange(n), device, weighted=weighted))


@pytest.mark.parametrize(("dtype", "n"), [(torch.bfloat16, 257), (torch.float16, 130)])
def test_every_dtype_is_summed_in_f32(dtype: torch.dtype, n: int, device: torch.device) -> None:
    assert_same(*accumulate(a_prompt(n, dtype, 200, size=24), torch.arange(n), device))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "value_weighted"])
def test_a_strided_sample_of_rows(weighted: bool, device: torch.device) -> None:
    positions = torch.arange(3, 257, 6)
    prompt = a_prompt(257, torch.bfloat16, 90)
    assert_same(*accumulate(prompt, positions, device, weighted=weighted))


def test_chunks_accumulate_to_the_whole(device: torch.device) -> None:
    prompt, n = a_prompt(140, torch.float16), 140
    far = torch.zeros(HEADS * GROUP, len(EDGES), n, device=device)
    for first, end in ((0, 1), (1, 130), (130, 140)):
        kernel.column_mass(
            far,
            ColumnMassInput(
                prompt.q[:, first:end].to(device),
                prompt.k[:, :end].to(device),
                prompt.lse[:, first:end].to(device),
                torch.arange(first, end),
                edges=EDGES,
                scale=SCALE,
                sliding_window=None,
                value_norms=None,
            ),
        )
    # every row shares out a mass of one
    total = torch.full((HEADS * GROUP,), float(n))
    torch.testing.assert_close(far[:, 0].sum(-1).cpu(), total, atol=0, rtol=1e-5)
    whole, _ = accumulate(prompt, torch.arange(n), device)
    torch.testing.assert_close(
        far.cpu(), (whole - prompt.start)[..., :n], atol=ABSOLUTE, rtol=RELATIVE
    )


def test_columns_beyond_the_keys_are_left_alone(device: torch.device) -> None:
    prompt = a_prompt(40, torch.float32)
    far, _ = accumulate(prompt, torch.arange(40), device)
    assert torch.equal(far[..., 40:], prompt.start[..., 40:])


def test_values_of_norm_zero_have_no_mass(device: torch.device) -> None:
    prompt = a_prompt(40, torch.float32)
    prompt.norms[:, :10] = 0
    found, expected = accumulate(prompt, torch.arange(10, 40), device, weighted=True)
    assert_same(found, expected)
    alone, _ = accumulate(prompt, torch.arange(10), device, weighted=True)
    assert torch.equal(alone, prompt.start)


def test_no_rows_add_nothing(device: torch.device) -> None:
    prompt = a_prompt(9, torch.float32)
    found, _ = accumulate(prompt, torch.arange(0), device)
    assert torch.equal(found, prompt.start)


def test_the_same_inputs_give_the_same_bits(device: torch.device) -> None:
    prompt = a_prompt(130, torch.bfloat16)
    first, _ = accumulate(prompt, torch.arange(130), device, weighted=True)
    again, _ = accumulate(prompt, torch.arange(130), device, weighted=True)
    assert torch.equal(first, again)
