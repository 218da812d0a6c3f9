"""A setting is measured on a GPU as it is on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvstore.policies import parse_policy
from services.evaluation.continuation import sample_continuation
from services.evaluation.prompt_record import PromptRecord
from services.evaluation.teacher_forcing import dense_logits, feed, kept_logits, open_pages
from services.runtime.model.served_model import ServedModel, load_model

_CONTEXT = tuple((7 * n * n) % 500 for n in range(40))
_FED = (5, 99, 250)


@pytest.fixture(scope="module")
def there(tiny_model: Path, any_device: str) -> ServedModel:
    return load_model(str(tiny_model), device=any_device)


@pytest.mark.parametrize("any_device", ["gpu"], indirect=True)
def test_predictions_are_the_cpus(served: ServedModel, there: ServedModel) -> None:
    for found, expected in zip(predictions(there), predictions(served), strict=True):
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), expected, atol=2e-4, rtol=1e-4)


def predictions(served: ServedModel) -> list[torch.Tensor]:
    """Exact ones, and over what a policy keeps: in plain torch and out of pages."""
    policy = parse_policy("h2o", {"budget": 0.5, "floor_rows": 4})
    with torch.inference_mode():
        record = PromptRecord(served, _CONTEXT)
        layers = record.compact_timed(policy).layers
        drawn = sample_continuation(served, record, _CONTEXT, 3)
        assert len(drawn.continuation) == 3
        pages = open_pages(served, [layers], len(_CONTEXT), len(_FED))
        return [
            dense_logits(served, _CONTEXT, _FED),
            kept_logits(served, layers, len(_CONTEXT), _FED),
            feed(served, pages, _FED),
        ]
