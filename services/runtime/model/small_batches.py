"""Faster linear layers and norms on CPU for the few rows of a decode step.

Parameters stay the same, and so do results up to rounding. With `small_linear` and `small_norm` a
forward pass of one sequence without context is 1.8 times as fast as a step of transformers on CPU
(docs/results/speed.md).

Exit: the three modules can go once the linear layers of torch (oneDNN) or of torchao reach that
speed for few f32 rows on CPU. Then the call of `prepare_for_small_batches` goes with them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from services.runtime.model.small_linear import MAX_ROWS, small_linear
from services.runtime.model.small_norm import MAX_VALUES, small_rms_norm

# layers of one module that are called one after another with the same input
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class SmallBatchLinear(torch.nn.Linear):
    """A `Linear` that multiplies few rows with `small_linear`, and more rows with torch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., K]` to `[..., N]`."""
        if _is_few(x):
            return small_linear(x, self.weight, self.bias)
        return functional.linear(x, self.weight, self.bias)


class SiblingLinear(torch.nn.Linear):
    """One of several layers whose products of a few rows are computed by the first of them."""

    siblings: Siblings
    number: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., K]` to `[..., N]`."""
        if _is_few(x):
            return self.siblings.product(x, self.number)
        return functional.linear(x, self.weight, self.bias)


class Siblings:
    """Linear layers of the same input, whose weights are views of one tensor."""

    def __init__(self, layers: Sequence[torch.nn.Linear]) -> None:
        self._sizes = [layer.out_features for layer in layers]
        self._weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        for layer, part in zip(layers, torch.split(self._weight, self._sizes), strict=True):
            layer.weight.data = part
        self._ready: tuple[torch.Tensor, Sequence[torch.Tensor]] | None = None

    def product(self, x: torch.Tensor, number: int) -> torch.Tensor:
        """Return layer `number`'s product; keep the others' for their calls with the same `x`."""
        ready = self._ready
        # the first layer always computes: `x` may be the last step's tensor with other contents
        if number == 0 or ready is None or ready[0] is not x:
            products = small_linear(x, self._weight, self._bias)
            ready = (x, torch.split(products, self._sizes, -1))
        self._ready = ready if number + 1 < len(self._sizes) else None
        return ready[1][number]


def prepare_for_small_batches(model: torch.nn.Module) -> None:
    """Let the model's standard linear layers and norms, f32 on CPU, use the kernels for few rows.

    Layers of other classes, devices and dtypes stay as they are. Parameters keep their names and
    values, so that the weights' digest is the same and no weight is held twice. Call this once the
    model is on its final device.
    """
    for module in list(model.modules()):
        for layers in _sibling_layers(module):
            siblings = Siblings(layers)
            for number, layer in enumerate(layers):
                layer.__class__ = SiblingLinear
                assert isinstance(layer, SiblingLinear)
                layer.siblings, layer.number = siblings, number
        if _is_linear(module):
            module.__class__ = SmallBatchLinear
        elif _is_rms_norm(module):
            kind: Any = type(module)
            module.__class__ = _small_norm(kind)


def _sibling_layers(module: torch.nn.Module) -> Iterator[list[torch.nn.Linear]]:
    for names in _SIBLINGS:
        layers = [getattr(module, name, None) for name in names]
        linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
        kinds = {(layer.in_features, layer.bias is None) for layer in linear}
        if len(linear) == len(names) and len(kinds) == 1 and all(map(_is_linear, linear)):
            yield linear


def _is_linear(module: torch.nn.Module) -> bool:
    """Whether this is a `Linear` on CPU in f32; subclasses may compute something else."""
    if type(module) is not torch.nn.Linear:
        return False
    return _is_cpu_float32(module.weight)


def _is_cpu_float32(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


def _is_rms_norm(module: torch.nn.Module) -> bool:
    """Whether the module computes what `small_rms_norm` does, by a trial, as models differ."""
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
        return False
    if not isinstance(weight, torch.Tensor) or not _is_cpu_float32(weight) or weight.dim() != 1:
        return False
    x = torch.linspace(-2, 3, 2 * len(weight)).view(2, -1)
    with torch.inference_mode():
        found, expected = small_rms_norm(x, weight, epsilon), module(x)
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@functools.cache
def _small_norm(kind: Any) -> Any:
    """Return a subclass of `kind` that uses `small_rms_norm` for few rows."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if x.numel() <= MAX_VALUES and not torch.is_grad_enabled():
            return small_rms_norm(x, self.weight, self.variance_epsilon)
        output: torch.Tensor = kind.forward(self, x)
        return output

    return type(f"SmallBatch{kind.__name__}", (kind,), {"forward": forward})


def _is_few(x: torch.Tensor) -> bool:
    # the kernel has no gradients
    return x.numel() <= MAX_ROWS * x.shape[-1] and not torch.is_grad_enabled()
