"""Triton's interpreter in place of a GPU."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any


def interpret() -> None:
    """Run kernels in Triton's interpreter; before Triton is imported, which settles it."""
    os.environ["TRITON_INTERPRET"] = "1"
    fit_interpreter_to_numpy()


def fit_interpreter_to_numpy() -> None:
    """Let the interpreter of Triton 3.6 run under numpy 2.5.

    A number is an array of one element there, of which it takes `int(…)`. Under numpy 2.5 that
    raises `TypeError`, so every loop over a range would.
    """
    if _release("triton") >= (3, 7) or _release("numpy") < (2, 5):
        return
    from triton.runtime import interpreter

    own = interpreter._patch_lang_tensor  # noqa: SLF001

    def patch(tensor: Any, scope: Any) -> None:
        own(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch  # noqa: SLF001


def _release(name: str) -> tuple[int, ...]:
    """Return the first two numbers of a library's version, zeros if it is missing."""
    try:
        first, second, *_ = importlib.metadata.version(name).split(".")
    except importlib.metadata.PackageNotFoundError:
        return (0, 0)
    return int(first), int(second)
