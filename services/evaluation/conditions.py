"""Conditions of a measurement: versions, machine and model."""

from __future__ import annotations

import datetime
import os
import platform

import torch

from headwise.version import __version__
from services.runtime.model.served_model import ServedModel


def conditions(served: ServedModel) -> dict[str, object]:
    """Named, in the order in which people read them."""
    return {
        "model": served.fingerprint.model_id,
        "dtype": served.fingerprint.dtype,
        "weights": served.fingerprint.weights_digest[:12],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "headwise": __version__,
        "torch": str(torch.__version__),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }
