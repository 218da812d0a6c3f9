"""Runs in kvpress's own environment: what its presses cost on given texts.

Arguments: the model's folder, and a JSON file with `passages` (prompt, fed and targets as token
ids) and `ratios` of the rows that are kept. Writes a line of JSON per press, ratio and passage.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import kvpress
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.utils import logging

# presses by name; each takes the share of the rows to remove
PRESSES: dict[str, Callable[[float], kvpress.BasePress]] = {
    "SnapKV": kvpress.SnapKVPress,
    "AdaKV over SnapKV": lambda ratio: kvpress.AdaKVPress(kvpress.SnapKVPress(ratio)),
    "ExpectedAttention": kvpress.ExpectedAttentionPress,
    "AdaKV over ExpectedAttention": lambda ratio: kvpress.AdaKVPress(
        kvpress.ExpectedAttentionPress(ratio)
    ),
    "StreamingLLM": kvpress.StreamingLLMPress,
    "Knorm": kvpress.KnormPress,
    "TOVA": kvpress.TOVAPress,
    "KeyDiff": kvpress.KeyDiffPress,
    "PyramidKV": kvpress.PyramidKVPress,
    "KVzip": kvpress.KVzipPress,
}


def main() -> None:
    folder, work = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    # the bar of the whole run is drawn by who started this
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    torch.set_num_threads(work["threads"])
    with torch.inference_mode():
        for number, passage in enumerate(work["passages"]):
            for line in measure(model, passage, work["ratios"]):
                print(json.dumps({"passage": number, **line}), flush=True)


def measure(
    model: PreTrainedModel, passage: dict[str, list[int]], ratios: Sequence[float]
) -> Iterator[dict[str, object]]:
    """Every press at every ratio, on one passage."""
    prompt, continuation = passage["prompt"], passage["fed"]
    exact = model(torch.tensor([prompt + continuation]), logits_to_keep=len(continuation)).logits[0]
    for name, press in PRESSES.items():
        for ratio in ratios:
            begin = time.perf_counter()
            cache = compressed(model, press(1 - ratio), prompt)
            seconds = time.perf_counter() - begin
            real = held_bytes(cache) / dense_bytes(model, len(prompt))
            logits = feed(model, cache, len(prompt), continuation)
            yield {
                "press": name,
                "ratio": ratio,
                "real_bytes": real,
                "prefill_seconds": seconds,
                **divergence(exact, logits, passage["targets"]),
            }


def compressed(
    model: PreTrainedModel, press: kvpress.BasePress, prompt: Sequence[int]
) -> DynamicCache:
    cache = DynamicCache()
    with press(model):
        # the way kvpress's own pipeline prefills: the body alone, no logits
        model.model(input_ids=torch.tensor([prompt]), past_key_values=cache)
    return cache


def feed(
    model: PreTrainedModel, cache: DynamicCache, first: int, continuation: Sequence[int]
) -> torch.Tensor:
    """Logits `[m, V]`, a token at a time: layers may hold different numbers of rows, and the fake
    keys that stand for what is masked are made anew for each query."""
    logits = []
    for position, token in enumerate(continuation, first):
        answer = model(
            torch.tensor([[token]]),
            past_key_values=cache,
            position_ids=torch.tensor([[position]]),
        )
        logits.append(answer.logits[0, -1])
    return torch.stack(logits)


def held_bytes(cache: DynamicCache) -> int:
    """Keys and values that the cache holds, masked or not."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    )


def dense_bytes(model: PreTrainedModel, tokens: int) -> int:
    config = model.config
    size = config.head_dim or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * size * tokens * 4


def divergence(
    exact: torch.Tensor, measured: torch.Tensor, targets: Sequence[int]
) -> dict[str, float]:
    """Return the figures of services/evaluation/teacher_forcing.compare, means over the tokens."""
    theirs, ours = exact.log_softmax(-1), measured.log_softmax(-1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1, dtype=torch.float64)
    loss = -ours.gather(1, torch.tensor(targets)[:, None])
    agreed = (exact.argmax(-1) == measured.argmax(-1)).double()
    return {"kl": float(kl.mean()), "loss": float(loss.mean()), "top1": float(agreed.mean())}


if __name__ == "__main__":
    main()
