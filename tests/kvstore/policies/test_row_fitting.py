"""Fitted rows against what least squares demand of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.policies.row_fitting import fit_rows

BOUND = math.exp(3)


def shares_of(seed: int, m: int = 300, n: int = 40, size: int = 8):
    """Attention of `m` queries over `n` rows, and the rows' values; some rows draw much."""
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(m, size, generator=generator), torch.randn(n, size, generator=generator)
    k[::7] *= 2
    return (q @ k.mT * 0.5).softmax(-1), torch.randn(n, size, generator=generator)


def test_a_row_that_stands_for_its_copies_counts_them():
    shares, values = shares_of(0, n=5)
    thrice = torch.cat([shares, shares, shares], 1) / 3
    fitted = fit_rows(thrice, torch.cat([values] * 3), torch.arange(5))
    torch.testing.assert_close(fitted.log_weights, torch.full((5,), math.log(3)), atol=1e-3, rtol=0)
    torch.testing.assert_close(fitted.values, values, atol=1e-3, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 39))
def test_weights_meet_the_conditions_of_bounded_least_squares(seed, count):
    shares, values = shares_of(seed)
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    weights = fit_rows(shares, values, rows).log_weights.double().exp()
    kept = shares[:, rows].double()
    slope = kept.mT @ (kept @ weights - 1)
    slope /= (kept.mT @ kept).diagonal().mean() * len(rows)
    assert (weights >= 1 / BOUND - 1e-6).all()
    assert (weights <= BOUND * (1 + 1e-6)).all()
    inside = (weights > 1.001 / BOUND) & (weights < 0.999 * BOUND)
    assert not (inside & (slope.abs() > 0.02)).any()
    assert (slope[weights <= 1.001 / BOUND] > -0.02).all()
    assert (slope[weights >= 0.999 * BOUND] < 0.02).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 39))
def test_values_are_the_ridge_regression_of_what_is_missing(seed, count):
    shares, values = shares_of(seed)
    rows = torch.arange(count)
    fitted = fit_rows(shares, values, rows)
    mixed = shares[:, rows].double() * fitted.log_weights.double().exp()
    mixed /= mixed.sum(1, keepdim=True)
    change = fitted.values.double() - values[rows].double()
    residual = shares.double() @ values.double() - mixed @ fitted.values.double()
    ridge = 0.1 * (mixed.mT @ mixed).diagonal().mean()
    torch.testing.assert_close(mixed.mT @ residual, ridge * change, atol=1e-3, rtol=1e-3)


def test_queries_that_were_not_seen_are_answered_better_too():
    shares, values = shares_of(3, m=2000, n=60)
    rows = shares.amax(0).topk(20).indices.sort().values
    fitted = fit_rows(shares[:1000], values, rows)

    def error(weights, held):
        mixed = shares[1000:, rows] * weights
        return float((mixed / mixed.sum(1, keepdim=True) @ held - shares[1000:] @ values).norm())

    plain = error(torch.ones(20), values[rows])
    assert error(fitted.log_weights.exp(), fitted.values) < 0.6 * plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_keep_their_dtype(dtype):
    shares, values = shares_of(4)
    fitted = fit_rows(shares, values.to(dtype), torch.arange(10))
    assert fitted.values.dtype == dtype
    assert fitted.log_weights.dtype == torch.float32


def test_rows_that_no_query_reads_keep_their_values():
    shares, values = shares_of(5)
    shares[:, 30:] = 0
    shares /= shares.sum(1, keepdim=True)
    fitted = fit_rows(shares, values, torch.arange(25, 40))
    torch.testing.assert_close(fitted.values[5:], values[30:])
    assert (fitted.log_weights[5:] == 0).all()


def test_all_rows_kept_change_nothing():
    values = torch.randn(6, 4)
    fitted = fit_rows(torch.eye(6), values, torch.arange(6))
    torch.testing.assert_close(fitted.values, values)
    torch.testing.assert_close(fitted.log_weights, torch.zeros(6))
