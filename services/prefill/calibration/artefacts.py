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
    """The kinds there are."""

    RETRIEVAL = "retrieval"
    FILTERS = "filters"
    SENSITIVITY = "sensitivity"


def artefact_path(folder: Path, kind: Artefact, weights_digest: str) -> Path:
    """Where the artefact of these weights rests."""
    return folder / f"calibration-{kind}-{_VERSION}-{weights_digest}.safetensors"


def write_artefact(path: Path, series: dict[str, tuple[torch.Tensor, ...]]) -> None:
    """Each series has a tensor a layer; the file appears whole or not at all."""
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

    An artefact can always be measured again, so a damaged one is as good as none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        layers = len(tensors) // len(names)
        return {name: tuple(tensors[f"{name}.{n}"] for n in range(layers)) for name in names}
    except (OSError, SafetensorError, KeyError):
        return None
