"""Measures whatever of a plan is not yet in the log."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch

from kvstore.calibration import Calibration
from services.evaluation.cases import Bench, Case
from services.evaluation.cell_log import CellKey, CellLog
from services.evaluation.settings import Setting
from services.prefill.calibration.calibrations import Calibrations
from services.runtime.model.served_model import ServedModel


def evaluate(
    bench: Bench,
    cases: Iterable[Case],
    settings: Sequence[Setting],
    log: CellLog,
    on_cells: Callable[[str, int], None],
) -> None:
    """Append every missing cell to the log; `on_cells` gets a part and its count."""
    for case in cases:
        missing = [s for s in settings if cell_key(case, s) not in log]
        on_cells(case.part, len(settings) - len(missing))
        if not missing:
            continue
        with torch.inference_mode():
            for setting, values in case.measure(bench, missing):
                log.append(cell_key(case, setting), values)
                on_cells(case.part, 1)


def cell_key(case: Case, setting: Setting) -> CellKey:
    return CellKey(case.part, case.name, setting.key)


def calibration_for(calibrations: Calibrations, settings: Sequence[Setting]) -> Calibration:
    """The artefacts that any of the settings asks for."""
    found = Calibration()
    for setting in settings:
        needed = calibrations.needed_by(setting.policy)
        held = {
            field.name: getattr(needed, field.name) or getattr(found, field.name)
            for field in dataclasses.fields(Calibration)
        }
        found = Calibration(**held)
    return found


def fitting(cases: Iterable[Case], served: ServedModel) -> list[Case]:
    """The cases that the model's positions reach."""
    return [case for case in cases if case.tokens <= served.context_tokens]
