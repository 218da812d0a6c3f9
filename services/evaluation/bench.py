"""A model made ready to be measured."""

from __future__ import annotations

from collections.abc import Sequence

from services.evaluation.cases import Bench
from services.evaluation.run import calibration_for
from services.evaluation.settings import Setting
from services.prefill.calibration.calibrations import Calibrations
from services.runtime.model.model_options import load_served_model
from services.runtime.process.options import ModelOptions


def open_bench(options: ModelOptions, settings: Sequence[Setting]) -> Bench:
    """Load the model, and find or make what the settings ask to be known of its heads.

    Raises what `load_model` raises.
    """
    served = load_served_model(options)
    calibrations = Calibrations(served, options.model_cache.expanduser())
    return Bench(served, calibration_for(calibrations, settings))
