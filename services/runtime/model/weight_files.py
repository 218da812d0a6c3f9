"""The weights of a model folder, examined by the heads of their files before they are read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from services.runtime.model.model_errors import ModelNotFound, ModelRefused

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs"
# safetensors' names of the types in which weights are numbers and not codes
_NUMBERS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclasses.dataclass(frozen=True, slots=True)
class WeightFiles:
    """The examined weights: the number of files, their tensors, and the bytes on disk."""

    files: int
    tensors: int
    nbytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]
    dtype: str


def examine_weights(folder: Path, config: PretrainedConfig) -> WeightFiles | None:
    """Check that the files are whole and that their tensors have the configured sizes.

    Only the heads of the files are read. Returns None for a folder whose weights are in another
    format than safetensors. Raises `ModelRefused`, and `ModelNotFound` without any weights.
    """
    require_unquantized(config)
    files = _files(folder)
    if files is None:
        return None
    tensors = {name: tensor for file in files for name, tensor in _read_head(file)}
    for name, shape in _configured_shapes(config):
        if name in tensors:
            _require_fit(name, tensors[name], shape)
    return WeightFiles(len(files), len(tensors), sum(file.stat().st_size for file in files))


def require_unquantized(config: PretrainedConfig) -> None:
    """Raise `ModelRefused` for a checkpoint whose weights are quantized."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    method = quantization.get("quant_method", "") if isinstance(quantization, dict) else ""
    raise ModelRefused(
        f"its weights are quantized{f' ({method})' if method else ''}; "
        "give the unquantized checkpoint, or a GGUF file"
    )


def _files(folder: Path) -> list[Path] | None:
    """The files that transformers would read. Raises as `examine_weights` does."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = folder / _INDEX
    if not index.is_file():
        if any(folder.glob("pytorch_model*.bin")):
            return None
        advice = f"the folder holds no {_SINGLE} and no {_INDEX}; download the weights"
        raise ModelNotFound(str(folder), advice)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelRefused(f"{index} is no index of weights; download it again") from error
    for name in names:
        if not (folder / name).is_file():
            raise ModelRefused(f"{name}, which {_INDEX} names, is missing; download it")
    return [folder / name for name in names]


def _read_head(file: Path) -> Iterator[tuple[str, _Tensor]]:
    """Name, shape and type of each tensor. Raises `ModelRefused` for a file that is not whole."""
    from safetensors import SafetensorError, safe_open

    with file.open("rb") as opened:
        beginning = opened.read(len(LFS_POINTER))
    if not beginning:
        raise ModelRefused(f"{file.name} is empty; download it again")
    if beginning == LFS_POINTER:
        raise ModelRefused(f"{file.name} is a Git LFS pointer; run `git lfs pull` in its folder")
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = tensors.get_slice(name)
                yield name, _Tensor(tuple(part.get_shape()), part.get_dtype())
    except SafetensorError as error:
        raise ModelRefused(
            f"{file.name} is cut short or damaged ({error}); download it again"
        ) from error


def _configured_shapes(config: PretrainedConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for name, tensor in model.state_dict().items():
        yield name, tuple(tensor.shape)


def _require_fit(name: str, tensor: _Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype not in _NUMBERS:
        raise ModelRefused(
            f"its weights are quantized: {name} holds {tensor.dtype} values; "
            "give the unquantized checkpoint, or a GGUF file"
        )
    if tensor.shape != shape:
        raise ModelRefused(
            f"its weights are not those that its config.json describes: sizes differ: {name} "
            f"({_sizes(tensor.shape)} in the file, {_sizes(shape)} by config.json). "
            "Take both from one checkpoint"
        )


def _sizes(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
