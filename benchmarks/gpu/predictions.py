"""Predictions from before the first run on a GPU; docs/gpu-predictions.md gives their reasons."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """A range in which a figure is expected at Llama-3-8B's sizes on an H200."""

    low: float
    high: float

    @property
    def told(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


PREDICTED = {
    "copy_bandwidth": Prediction(4.2, 4.4),
    "matrix_rate": Prediction(760, 800),
    "ragged_bandwidth_ratio": Prediction(0.84, 0.92),
    "skew_ratio": Prediction(0.98, 1.08),
    "score_return_ratio": Prediction(1.05, 1.12),
    "ragged_bandwidth_ratio_fp8": Prediction(0.65, 0.85),
    "ragged_bandwidth_ratio_int8": Prediction(0.70, 0.85),
    "ragged_bandwidth_ratio_int8/int4": Prediction(0.55, 0.75),
    "ragged_bandwidth_ratio_int4": Prediction(0.50, 0.65),
    "ragged_bandwidth_ratio_small_pages": Prediction(0.60, 0.80),
    "speed_up_by_rows_at_0.125": Prediction(0.80, 0.95),
    "one_sequence_seconds_short": Prediction(12e-6, 25e-6),
    "one_sequence_seconds_long": Prediction(140e-6, 190e-6),
    "retain_seconds": Prediction(20e-6, 40e-6),
    "prefill_attention_ratio_flash": Prediction(1.0, 1.1),
    "prefill_attention_ratio_cudnn": Prediction(1.6, 2.0),
    "column_mass_all_ratio_flash": Prediction(0.7, 0.9),
    "column_mass_all_ratio_cudnn": Prediction(1.3, 1.8),
    "compact_bandwidth_ratio": Prediction(0.70, 0.90),
    "compact_bandwidth_ratio_int8": Prediction(0.55, 0.85),
    "compact_bandwidth_ratio_int4": Prediction(0.30, 0.70),
    "choose_seconds": Prediction(0.5e-3, 3e-3),
    "step_of_limit_ratio_unfused": Prediction(0.55, 0.65),
    "step_of_limit_ratio": Prediction(0.65, 0.75),
    "dense_step_seconds": Prediction(48e-3, 58e-3),
}
