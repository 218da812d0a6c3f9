"""Merged rows against the tokens that they stand for."""

import math

import pytest
import torch

from kvstore.policies.row_merging import merge_rows


def tokens_of(seed: int, n: int = 12, size: int = 8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, size, generator=generator), torch.randn(n, size, generator=generator)


def attended(q, k, v, log_weights):
    return (q @ k.mT + log_weights).softmax(-1) @ v


def test_a_row_merged_from_equal_tokens_gives_their_attention():
    k, v = tokens_of(0)
    k[3:8], v[3:8] = k[3], v[3]
    owners = torch.tensor([0, 1, 2, 3, 3, 3, 3, 3, 4, 5, 6, 7])
    merged = merge_rows(k, v, owners, 8)
    q = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    expected = attended(q, k, v, torch.zeros(12))
    torch.testing.assert_close(
        attended(q, merged.keys, merged.values, merged.log_weights), expected
    )


def test_means_are_weighed_and_counts_raised_to_the_exponent():
    k, v = tokens_of(1, 5)
    shares = torch.tensor([1.0, 3.0, 1.0, 1.0, 2.0])
    # rows need not be of tokens in a row
    merged = merge_rows(k, v, torch.tensor([0, 1, 0, 1, 1]), 2, shares, 0.5)
    torch.testing.assert_close(merged.keys[0], (k[0] + k[2]) / 2)
    torch.testing.assert_close(merged.values[1], (3 * v[1] + v[3] + 2 * v[4]) / 6)
    assert merged.log_weights.tolist() == pytest.approx([math.log(2) / 2, math.log(3) / 2])


def test_lost_tokens_go_into_no_row():
    k, v = tokens_of(2, 4)
    k[0], v[0] = math.nan, math.nan
    merged = merge_rows(k, v, torch.tensor([-1, 0, 0, 1]), 2)
    torch.testing.assert_close(merged.keys[0], k[1:3].mean(0))
    assert merged.log_weights.tolist() == pytest.approx([math.log(2), 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_token_alone_stays_as_it_is(dtype):
    k, v = (part.to(dtype) * 1.7 for part in tokens_of(3))
    owners = torch.tensor([0, 0, *range(1, 11)])
    merged = merge_rows(k, v, owners, 11, torch.rand(12) + 0.1)
    assert merged.keys.dtype == merged.values.dtype == dtype
    assert merged.log_weights.dtype == torch.float32
    assert torch.equal(merged.keys[1:], k[2:])
    assert torch.equal(merged.values[1:], v[2:])
    assert (merged.log_weights[1:] == 0).all()
