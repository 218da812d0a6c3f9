"""Why a model cannot be served, as a tree:

    ModelError
    ├── ModelNotFound         no such file, folder, package or hub id
    └── ModelRefused          it exists, but would not be served faithfully

and, as a fault of one request, `ChatTemplateMissing` below `InvalidParameter`.
"""

from __future__ import annotations

from kvstore.errors import InvalidParameter


class ModelError(Exception):
    """Root of what stops a service at start-up on account of its model."""


class ModelNotFound(ModelError):
    """Nothing to load under `name`; `advice` says what to do about it."""

    def __init__(self, name: str, advice: str) -> None:
        super().__init__(f"model {name!r} not found: {advice}")
        self.name = name


class ModelRefused(ModelError):
    """The model runs but would be silently wrong here; `reason` names the feature."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"model refused: {reason}")
        self.reason = reason


class ChatTemplateMissing(InvalidParameter):
    """A chat was sent to a model whose tokenizer knows no chat format."""

    def __init__(self) -> None:
        super().__init__("messages", "this model has no chat template; send a plain prompt")
