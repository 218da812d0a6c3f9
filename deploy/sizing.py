"""Memory, replicas and network bandwidth: the formulas of docs/sizing.md.

`python -m deploy.sizing` prints its tables.
"""

from __future__ import annotations

import dataclasses
import math

from services.decode.options import page_rows_for
from services.runtime.process.options import ModelOptions

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """The shape of a model; `value_bytes` are the bytes of one number of the cache."""

    name: str
    layers: int
    kv_heads: int
    head_size: int
    parameters: float
    value_bytes: int = 2

    @property
    def token_bytes(self) -> int:
        """Bytes of a dense cache a token: `2·L·H·D·s`."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.value_bytes

    @property
    def page_rows(self) -> int:
        """Rows of a page on a GPU, where `--page-rows` leaves them open."""
        dtype = "float32" if self.value_bytes == 4 else "bfloat16"
        return page_rows_for(0, ModelOptions(device="cuda", dtype=dtype))

    @property
    def weight_bytes(self) -> int:
        return round(self.parameters * self.value_bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """Tokens of a prompt and its answer, and the share of the prompt's rows that is kept."""

    prompt_tokens: int
    answer_tokens: int
    kept: float = 1.0

    def resident_bytes(self, model: Model) -> int:
        """Bytes of `--pool-bytes` that one sequence takes at its end.

        Every head is taken to grow by the answer. Heads with a window or a budget grow less, so
        the result is an upper bound. Where rows are dropped, heads keep different shares, and the
        last page of a head is half empty on average; otherwise all heads are alike.
        """
        page_rows = model.page_rows
        rows = self.kept * self.prompt_tokens + self.answer_tokens
        pages = rows / page_rows + 0.5 if self.kept < 1 else math.ceil(rows / page_rows)
        page_bytes = page_rows * (2 * model.head_size * model.value_bytes + _MARK_BYTES)
        return round(model.layers * model.kv_heads * pages * page_bytes)

    def wire_bytes(self, model: Model) -> int:
        """Bytes of the cache that crosses the network for one prompt."""
        return round(self.kept * self.prompt_tokens * model.token_bytes)


# position, score and flag of a row: the pool sets them aside for every row
_MARK_BYTES = 9


def pool_bytes(device_bytes: float, model: Model, headroom_bytes: float = 6 * GIB) -> float:
    """Bytes of a device for pages: 90 % of it, less weights, activations and graphs."""
    return 0.9 * device_bytes - model.weight_bytes - headroom_bytes


def sequences(pool: float, model: Model, load: Load) -> int:
    """Sequences that a pool holds at once."""
    return max(0, int(pool // load.resident_bytes(model)))


def prefills_per_decode(
    load: Load, prefill_tokens_per_second: float, step_seconds: float, batch: int
) -> float:
    """Prefill replicas that keep one decode replica busy.

    A prompt takes `T / rate`; an answer takes `n · step`, shared by the batch.
    """
    prefill_seconds = load.prompt_tokens / prefill_tokens_per_second
    return prefill_seconds / (load.answer_tokens * step_seconds / batch)


def network_bytes_per_second(model: Model, load: Load, requests_per_second: float) -> float:
    """Bytes per second from prefill to decode."""
    return requests_per_second * load.wire_bytes(model)


MODELS = (
    Model("SmolLM2-135M (fp32)", 30, 3, 64, 0.135e9, value_bytes=4),
    Model("SmolLM3-3B", 36, 4, 128, 3.08e9),
    Model("Phi-3-mini", 32, 32, 96, 3.82e9),
    Model("Mistral-7B", 32, 8, 128, 7.25e9),
    Model("Qwen2.5-7B", 28, 4, 128, 7.62e9),
    Model("Llama-3.1-8B", 32, 8, 128, 8.03e9),
    Model("Qwen3-8B", 36, 8, 128, 8.19e9),
    Model("Qwen3-30B-A3B", 48, 4, 128, 30.5e9),
    Model("Llama-3.1-70B", 80, 8, 128, 70.6e9),
)
DENSE = Load(8192, 256)
# the default policy keeps 30 % of a prompt's rows
COMPACT = Load(8192, 256, kept=0.30)


def table(device_bytes: int = 80 * GIB) -> str:
    """The table of models in Markdown, one line per model."""
    lines = [
        "| model | bytes a token | cache of 8,192 tokens | sequences, dense | sequences, compact |",
        "|---|---|---|---|---|",
    ]
    for model in MODELS:
        pool = pool_bytes(device_bytes, model)
        fit = (
            f"{sequences(pool, model, DENSE):,} | {sequences(pool, model, COMPACT):,}"
            if pool > 0
            else "no room | no room"
        )
        size = f"{DENSE.prompt_tokens * model.token_bytes / (1 << 20):,.0f} MiB"
        lines.append(f"| {model.name} | {model.token_bytes:,} | {size} | {fit} |")
    return "\n".join(lines)


def network_table(model: Model, requests_per_second: float = 1.0) -> str:
    """The table of bandwidth at one request per second, dense and compact, in Markdown."""
    lines = ["| prompt | dense | compact |", "|---|---|---|"]
    for tokens in (1024, 8192, 32768):
        cells = [
            f"{8 * network_bytes_per_second(model, load, requests_per_second) / 1e9:.2f} Gbit/s"
            for load in (
                dataclasses.replace(DENSE, prompt_tokens=tokens),
                dataclasses.replace(COMPACT, prompt_tokens=tokens),
            )
        ]
        lines.append(f"| {tokens:,} tokens | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    llama = next(model for model in MODELS if model.name == "Llama-3.1-8B")
    sys.stdout.write(f"{table()}\n\n{network_table(llama)}\n")
