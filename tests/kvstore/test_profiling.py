"""The tiled profile against the attention map in float64, whatever the chunking."""

import pytest
import torch

from kvstore.cache import LayerShape
from kvstore.kernels.column_mass import cpu
from kvstore.kernels.column_mass import reference as column_mass_reference
from kvstore.kernels.column_mass.input import ColumnMassInput
from kvstore.kernels.prefill_attention.op import prefill_attention
from kvstore.plans import ProfileRequest
from kvstore.profiling import Profiler, sampled_positions

SCALE = 0.25
EDGES = (0, 1, 7, 64, 77, 100, 400)


def attention_map(q, k, window=None):
    n = k.shape[1]
    distance = torch.arange(n)[:, None] - torch.arange(n)
    hidden = (distance < 0) | (distance >= (window or n))
    keys = k.double().repeat_interleave(q.shape[0] // k.shape[0], 0)
    return (q.double() @ keys.mT * SCALE).masked_fill(hidden, -torch.inf).softmax(-1)


def brute_force(q, k, v, request, window):
    """`far` `[HQ, E, T]` in float64, straight from its definition."""
    n = k.shape[1]
    mass = attention_map(q, k, window)
    if request.value_weighted:
        mass = (
            mass * v.double().norm(dim=-1).repeat_interleave(q.shape[0] // k.shape[0], 0)[:, None]
        )
        mass = mass / mass.sum(-1, keepdim=True)
    rows = torch.arange(n)
    if request.rows and request.rows < n:
        rows = torch.tensor([int((r + 0.5) * n / request.rows) for r in range(request.rows)])
    distance = torch.arange(n)[:, None] - torch.arange(n)
    far = [torch.where(distance >= e, mass, 0.0)[:, rows].sum(1) for e in request.edges]
    return torch.stack(far, 1) * (n / len(rows))


def observed(q, k, v, request, window, chunks):
    shape = LayerShape(k.shape[0], q.shape[0], k.shape[2], window)
    n = k.shape[1]
    profiler = Profiler(request, shape, n)
    for first in range(0, n, chunks):
        end = min(first + chunks, n)
        part = q[:, first:end], k[:, :end], v[:, :end]
        _, lse = prefill_attention(*part, scale=SCALE, sliding_window=window)
        profiler.observe(*part, lse, first, SCALE)
    return profiler.profile()


def assert_same_mass(found, expected, n):
    error = (found.double() - expected).abs()
    assert error.max() <= 1e-5 * n
    heavy = expected >= 1e-3
    assert (error[heavy] <= 1e-4 * expected[heavy]).all()


@pytest.fixture(params=[8, 64], ids=["small_blocks", "large_blocks"])
def block_rows(request, monkeypatch):
    monkeypatch.setattr(cpu, "_MAX_ROWS", request.param)


@pytest.mark.usefixtures("block_rows")
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "value_weighted"])
@pytest.mark.parametrize("rows", [0, 5, 41], ids=["all", "rows5", "rows41"])
@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize("n", [1, 2, 63, 257])
def test_agrees_with_the_definition(n, window, rows, weighted):
    torch.manual_seed(n)
    q, k, v = torch.randn(6, n, 16) * 2, torch.randn(2, n, 16) * 2, torch.randn(2, n, 16)
    request = ProfileRequest(EDGES, rows, weighted)
    expected = brute_force(q, k, v, request, window)
    for chunks in (n, 100, 17):
        profile = observed(q, k, v, request, window, chunks)
        assert profile.far.shape == (2, 3, len(EDGES), n)
        assert_same_mass(profile.far.flatten(0, 1), expected, n)


def test_all_mass_is_accounted_for():
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 300, 16), torch.randn(2, 300, 16), torch.randn(2, 300, 16)
    profile = observed(q, k, v, ProfileRequest((0, 32), 64), None, 128)
    torch.testing.assert_close(profile.accumulated().sum(-1), torch.full((2, 2), 300.0))
    assert (profile.beyond(32) <= profile.accumulated()).all()


def test_the_reference_agrees_with_the_definition():
    torch.manual_seed(3)
    q, k, v = torch.randn(6, 90, 16), torch.randn(2, 90, 16), torch.randn(2, 90, 16)
    _, lse = prefill_attention(q, k, v, scale=SCALE, sliding_window=40)
    far = torch.zeros(6, len(EDGES), 90)
    column_mass_reference.column_mass(
        far,
        ColumnMassInput(
            q,
            k,
            lse,
            torch.arange(90),
            edges=EDGES,
            scale=SCALE,
            sliding_window=40,
            value_norms=v.norm(dim=-1),
        ),
    )
    expected = brute_force(q, k, v, ProfileRequest(EDGES, 0, True), 40)
    assert_same_mass(far, expected, 90)


def test_values_of_norm_zero_leave_no_nan():
    torch.manual_seed(0)
    q, k = torch.randn(2, 20, 16), torch.randn(1, 20, 16)
    profile = observed(q, k, torch.zeros_like(k), ProfileRequest((0, 3), 0, True), None, 20)
    assert profile.far.isfinite().all()


@pytest.mark.parametrize(
    ("rows", "tokens"), [(0, 9), (9, 9), (100, 9), (1, 9), (4, 9), (512, 4096)]
)
def test_samples_are_strided_evenly(rows, tokens):
    positions = sampled_positions(rows, tokens)
    wanted = rows if 0 < rows < tokens else tokens
    assert positions.tolist() == [int((r + 0.5) * tokens / wanted) for r in range(wanted)]
