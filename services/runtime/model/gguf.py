"""Conversion of GGUF files, once each, into a folder that loads fifty times faster."""

from __future__ import annotations

import copy
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from services.runtime.model.allow_list import require_served
from services.runtime.model.loaded_weights import load_weights
from services.runtime.model.model_errors import ModelCacheUnusable, ModelRefused
from services.runtime.model.reading import readable
from services.runtime.model.weight_files import LFS_POINTER

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

# raise it when the conversion changes, so that older folders are not read
_CONVERSION = 1
_MAGIC = b"GGUF"


def converted_folder(gguf_file: Path, digest: str, cache_dir: Path) -> Path:
    """Return the file as a Hugging Face folder below `cache_dir`; convert it if there is none.

    The folder is named by `digest`, the file's `file_digest`, and appears when it is complete. Of
    several processes one converts while the others wait. Raises `ModelRefused`, or
    `ModelCacheUnusable` if nothing can be written.
    """
    folder = cache_dir / f"gguf-{_CONVERSION}-{digest}"
    if folder.is_dir():
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                # conversion of 135 M parameters takes 16 s, a later load 0.3 s
                _log.warning("converting %s once, into %s", gguf_file.name, folder)
                _convert(gguf_file, folder)
    except OSError as error:
        raise ModelCacheUnusable(cache_dir, error.strerror or str(error)) from error
    return folder


def file_digest(path: Path) -> str:
    """SHA-256 of a file, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which ends with the process at the latest."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(gguf_file: Path, folder: Path) -> None:
    subject = f"the GGUF file {gguf_file.name}"
    with readable(subject, "download it again", system_errors=True):
        loaded, tokenizer = _read(gguf_file)
    # the rest of a conversion that was killed
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _unquantized(loaded).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    os.rename(partial, folder)


def _read(gguf_file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read the file whole. Raises `ModelRefused` by its head, before any weights are read."""
    from transformers import AutoConfig, AutoTokenizer

    with gguf_file.open("rb") as file:
        beginning = file.read(len(LFS_POINTER))
    if beginning == LFS_POINTER:
        raise ModelRefused(f"{gguf_file.name} is a Git LFS pointer; run `git lfs pull`")
    if not beginning.startswith(_MAGIC):
        raise ModelRefused(f"{gguf_file.name} is no GGUF file; give another file, or a folder")
    source = {
        "pretrained_model_name_or_path": gguf_file.parent,
        "gguf_file": gguf_file.name,
        "trust_remote_code": False,
    }
    require_served(AutoConfig.from_pretrained(**source))
    loaded = load_weights(**source, dtype=torch.float32)
    return loaded, AutoTokenizer.from_pretrained(**source)


def _unquantized(loaded: PreTrainedModel) -> PreTrainedModel:
    """Return a model with the same weights and an unquantized configuration, for saving."""
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        unquantized = type(loaded)(config)
    unquantized.load_state_dict(loaded.state_dict(), assign=True)
    unquantized.tie_weights()
    unquantized.generation_config = loaded.generation_config
    return unquantized
