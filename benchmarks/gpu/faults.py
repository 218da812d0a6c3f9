"""Faults on purpose, by which tests see that one part costs no other.

`HEADWISE_GPU_FAULT=PART=KIND,…`; a KIND is `crash` (the process aborts), `hang` (it never ends) or
`wrong` (an element of what a kernel computed is changed). The first two come after the part's
first figure.
"""

from __future__ import annotations

import os
import time

import torch

VARIABLE = "HEADWISE_GPU_FAULT"


def kind(part: str) -> str:
    """Return the fault that the part is to have, or nothing."""
    pairs = (pair.partition("=") for pair in os.environ.get(VARIABLE, "").split(",") if pair)
    return next((kind for name, _, kind in pairs if name == part), "")


def strike(part: str) -> None:
    """End the process or never return, if the part is to."""
    match kind(part):
        case "crash":
            os.abort()
        case "hang":
            while True:
                time.sleep(60)


def spoiled(part: str, outcome: torch.Tensor) -> torch.Tensor:
    """Return what a kernel computed, with one element changed if the part is to be wrong."""
    if kind(part) != "wrong":
        return outcome
    changed = outcome.clone()
    changed.view(-1)[:1] += 1
    return changed
