"""Errors of a model that cannot be served:

    ModelError
    ├── ModelNotFound         no such file, folder, package or hub id
    └── ModelRefused          it exists, but its answers would be wrong here

and, as a fault of one request, `ChatTemplateMissing` below `InvalidParameter`.
"""

from __future__ import annotations

from kvstore.errors import InvalidParameter


class ModelError(Exception):
    """Root of the errors with which a model stops a service at start-up."""


class ModelNotFound(ModelError):
    """Nothing to load under `name`; `advice` says what to do about it."""

    def __init__(self, name: str, advice: str) -> None:
        super().__init__(f"model {name!r} not found: {advice}")
        self.name = name


class ModelRefused(ModelError):
    """The model would give wrong answers without an error; `reason` names the feature."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"model refused: {reason}")
        self.reason = reason


class ChatTemplateMissing(InvalidParameter):
    """A chat was sent to a model whose tokenizer has no chat template."""

    def __init__(self) -> None:
        super().__init__("messages", "this model has no chat template; send a plain prompt")
