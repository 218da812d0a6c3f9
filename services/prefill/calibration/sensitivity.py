"""The effect of an error in each query head's output on the model's predictions.

Original to Headwise. For small errors δ in a head's output the divergence of the predictions is
δᵀ F δ / 2, with F their Fisher information: the mean product of gradients of the log-likelihood of
tokens drawn from the model's predictions. F is approximated by one number: the mean square of the
gradient's elements. In SmolLM2 its root is 50 times as large for the most sensitive head as for
the least, mostly because of their depth.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvstore.attention_input import AttentionInput
from services.prefill.calibration.texts import spread_texts
from services.runtime.model.served_model import ServedModel

_TEXTS = 2
_TEXT_TOKENS = 1024
# draws of the next token at every position of a text
_DRAWS = 2
_SEED = 0
# the first tokens are left out: few tokens contribute to the gradients of their outputs
_FIRST = 64


# the caller may run in inference mode, which has no gradients
@torch.inference_mode(mode=False)
def measure_sensitivity(
    served: ServedModel, text_tokens: int = _TEXT_TOKENS
) -> tuple[torch.Tensor, ...]:
    """Return root mean square gradients f32 `[HQ]` per layer, on Python's documentation."""
    device = served.model.device
    generator = torch.Generator(device).manual_seed(_SEED)
    squares = [torch.zeros(shape.query_heads, device=device) for shape in served.shapes]
    for text in spread_texts(served, _TEXTS, text_tokens):
        for of_layer, gradients in zip(squares, _gradients(served, text, generator), strict=True):
            of_layer += gradients
    return tuple((of_layer / (_TEXTS * _DRAWS)).sqrt().cpu() for of_layer in squares)


def _gradients(
    served: ServedModel, ids: torch.Tensor, generator: torch.Generator
) -> list[torch.Tensor]:
    """Sum over draws the mean squared gradients `[HQ]` of the heads' outputs, per layer."""
    hook = _Outputs()
    with torch.enable_grad():
        logits = served.model(
            input_ids=ids[None],
            position_ids=torch.arange(len(ids), device=ids.device)[None],
            use_cache=False,
            headwise=hook,
            headwise_shapes=served.shapes,
        ).logits[0]
        likelihoods = logits.float().log_softmax(-1)
        squares: list[torch.Tensor] = []
        for draw in range(_DRAWS):
            drawn = torch.multinomial(likelihoods.detach().exp(), 1, generator=generator)
            found = torch.autograd.grad(
                likelihoods.gather(1, drawn).sum(), hook.outputs, retain_graph=draw < _DRAWS - 1
            )
            means = [of_layer[0, _FIRST:].float().square().mean((0, 2)) for of_layer in found]
            squares = [a + b for a, b in zip(squares, means, strict=True)] if squares else means
    return squares


class _Outputs:
    """An `AttentionHook` that keeps every layer's output `[1, n, HQ, D]` for its gradient."""

    def __init__(self) -> None:
        self.outputs: list[torch.Tensor] = []

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        q, k, v = inputs.q, inputs.k, inputs.v
        distance = torch.arange(q.shape[2], device=q.device)
        distance = distance[:, None] - distance
        seen = (distance >= 0) & (distance < (inputs.sliding_window or math.inf))
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=inputs.scale, enable_gqa=True
        )
        self.outputs.append(out.transpose(1, 2))
        return self.outputs[-1]
