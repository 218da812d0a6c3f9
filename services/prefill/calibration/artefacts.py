"""Calibration artefacts on disk: one small safetensors file a kind, named by the weights digest."""

from __future__ import annotations

import enum
import os
import tempfile
from pathlib import Path

import torch

# raise it when a probe changes, so that older artefacts are not read
_VERSION = 1


class Artefact(enum.StrEnum):
    """The kinds of artefact."""

    RETRIEVAL = "retrieval"
    FILTERS = "filters"
    SENSITIVITY = "sensitivity"


def artefact_path(folder: Path, kind: Artefact, weights_digest: str) -> Path:
    """The file of the artefact of these weights."""
    return folder / f"calibration-{kind}-{_VERSION}-{weights_digest}.safetensors"


def write_artefact(path: Path, series: dict[str, tuple[torch.Tensor, ...]]) -> None:
    """Write series of one tensor per layer; the complete file replaces the old one atomically."""
    from safetensors.torch import save

    tensors = {
        f"{name}.{layer}": tensor.contiguous()
        for name, of_layers in series.items()
        for layer, tensor in enumerate(of_layers)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(save(tensors))
    os.replace(file.name, path)


def read_artefact(path: Path, *names: str) -> dict[str, tuple[torch.Tensor, ...]] | None:
    """The series of these names, as `write_artefact` got them; None where the file cannot be read.

    An artefact can be measured again, so a damaged one counts as missing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        layers = len(tensors) // len(names)
        return {name: tuple(tensors[f"{name}.{n}"] for n in range(layers)) for name in names}
    except (OSError, SafetensorError, KeyError):
        return None
