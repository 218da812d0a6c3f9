"""Errors of a model that cannot be served:

    ModelError
    ├── ModelNotFound         no such file, folder, package or hub id
    ├── ModelCacheUnusable    the folder for converted models cannot be written
    └── ModelRefused          it is damaged, or its answers would be wrong here

and, as a fault of one request, `ChatTemplateMissing` below `InvalidParameter`.
"""

from __future__ import annotations

from pathlib import Path

from kvstore.errors import InvalidParameter
from services.runtime.process.serve_error import ServeError


class ModelError(ServeError):
    """Root of the errors with which a model stops a service at start-up."""


class ModelNotFound(ModelError):
    """Nothing to load under `name`; `advice` says what to do about it."""

    def __init__(self, name: str, advice: str) -> None:
        super().__init__(f"--model {name} not found: {advice}")
        self.name = name


class ModelCacheUnusable(ModelError):
    """The folder of `--model-cache` cannot be used; `reason` is the system's."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(
            f"--model-cache {folder} cannot be written: {reason}; give a folder that can be written"
        )


class ModelRefused(ModelError):
    """The model cannot be read, or would give wrong answers; `reason` names what is wrong."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"--model refused: {reason}")
        self.reason = reason


class ChatTemplateMissing(InvalidParameter):
    """A chat was sent to a model whose tokenizer has no chat template."""

    def __init__(self) -> None:
        super().__init__("messages", "this model has no chat template; send a plain prompt")
