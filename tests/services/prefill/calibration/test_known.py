"""The artefact that comes with the package is the real model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.prefill.calibration import calibrations as calibrations_module
from services.prefill.calibration.calibrations import Calibrations
from services.prefill.calibration.retrieval_probe import probe_retrieval
from services.runtime.model.served_model import load_model

pytestmark = pytest.mark.model


def test_the_small_models_retrieval_heads_are_known(
    smollm2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = load_model(smollm2)
    measured = probe_retrieval(served, 256)
    monkeypatch.delattr(calibrations_module, "probe_retrieval")
    known = Calibrations(served, tmp_path).retrieval()
    assert not list(tmp_path.iterdir())
    # a short probe ranks nearly as the whole one does
    whole, short = (torch.cat(scores.induction) for scores in (known, measured))
    assert whole.shape == short.shape == torch.cat(known.echo).shape
    assert len(set(whole.topk(9).indices.tolist()) & set(short.topk(9).indices.tolist())) >= 7
