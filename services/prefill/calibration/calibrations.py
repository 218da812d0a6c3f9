"""Finds the artefacts that a policy needs, and measures the missing ones.

The artefacts of SmolLM2 come with this package, because its probe takes half a minute on two cores.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kvstore.calibration import Calibration, RetrievalScores
from kvstore.policies import Policy
from services.prefill.calibration.artefacts import (
    Artefact,
    artefact_path,
    read_artefact,
    write_artefact,
)
from services.prefill.calibration.query_filters import measure_filters
from services.prefill.calibration.retrieval_probe import probe_retrieval
from services.prefill.calibration.sensitivity import measure_sensitivity
from services.runtime.model.served_model import ServedModel

_log = logging.getLogger("headwise.calibration")

_KNOWN = Path(__file__).with_name("known")

_Series = dict[str, tuple[torch.Tensor, ...]]


class Calibrations:
    """The artefacts of one model, in `folder` beside converted models. For one thread only."""

    def __init__(self, served: ServedModel, folder: Path) -> None:
        self._served = served
        self._folder = folder
        self._held: dict[Artefact, _Series] = {}

    def needed_by(self, policy: Policy) -> Calibration:
        """Return what this policy needs; its first use ever measures it, which takes seconds."""
        return Calibration(
            retrieval=self.retrieval() if policy.retrieval_ratio else None,
            filters=self.filters() if policy.uses_filters else None,
            sensitivity=self.sensitivity() if policy.uses_sensitivity else None,
        )

    def retrieval(self) -> RetrievalScores:
        series = self._find(Artefact.RETRIEVAL, ("induction", "echo"), self._probe)
        return RetrievalScores(series["induction"], series["echo"])

    def filters(self) -> tuple[torch.Tensor, ...]:
        return self._find(Artefact.FILTERS, ("filters",), self._measure_filters)["filters"]

    def sensitivity(self) -> tuple[torch.Tensor, ...]:
        return self._find(Artefact.SENSITIVITY, ("sensitivity",), self._measure_sensitivity)[
            "sensitivity"
        ]

    def path(self, kind: Artefact) -> Path:
        """The file of this model's artefact, which may not exist yet."""
        path = artefact_path(self._folder, kind, self._served.fingerprint.weights_digest)
        known = _KNOWN / path.name
        return known if known.exists() and not path.exists() else path

    def _probe(self) -> _Series:
        scores = probe_retrieval(self._served)
        return {"induction": scores.induction, "echo": scores.echo}

    def _measure_filters(self) -> _Series:
        return {"filters": measure_filters(self._served)}

    def _measure_sensitivity(self) -> _Series:
        return {"sensitivity": measure_sensitivity(self._served)}

    def _find(self, kind: Artefact, names: tuple[str, ...], make: Callable[[], _Series]) -> _Series:
        """Return the series from memory or disk, or measure it."""
        if kind not in self._held:
            path = self.path(kind)
            self._held[kind] = read_artefact(path, *names) or self._make(kind, make, path)
        return self._held[kind]

    def _make(self, kind: Artefact, make: Callable[[], _Series], path: Path) -> _Series:
        began = time.perf_counter()
        _log.info("measuring %s of the model once, which may take a minute", kind)
        series = make()
        try:
            write_artefact(path, series)
        except OSError as error:
            # a read-only folder is right where nothing has to be measured
            _log.warning(
                "--model-cache %s cannot be written (%s): %s is measured again at each start",
                path.parent,
                error.strerror,
                kind,
            )
            return series
        _log.info("%s measured once in %.1f s: %s", kind, time.perf_counter() - began, path)
        return series
