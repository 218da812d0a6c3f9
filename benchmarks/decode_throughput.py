"""Decode steps on full and compact caches, against transformers' own batched decode.

Model, weights and threads are the same, and the contestants take turns step by step, so that
drift of the machine falls out of the ratios. Caches are random rows; coverage's heads are of very
different sizes, as real ones are.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.figures import Figure, add_options, report
from benchmarks.random_caches import (
    coverage_rules,
    full_rules,
    open_random,
    random_dynamic_cache,
)
from kvstore.attention_input import AttentionInput
from kvstore.pool import SequencePages
from services.decode.engine.step import run_step
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel, load_model
from services.runtime.model.small_batches import prepare_for_small_batches

KEPT_RATIO = 0.2
_BANDWIDTH_FLOATS = 1 << 28
_WARM_UP_STEPS = 2

_PEER = "transformers with DynamicCache"
_LIMIT = "a forward without context and kept rows at read speed"


class NoContext:
    """An `AttentionHook` under which every token sees itself alone."""

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        q, v = inputs.q, inputs.v
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1).transpose(1, 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Contest:
    """Seconds per step, one entry a round, by contestant."""

    batch: int
    tokens: int
    seconds: dict[str, list[float]]
    compact_bytes: int

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str) -> float:
        """Tokens per second relative to the peer's; the median of the rounds' ratios."""
        pairs = zip(self.seconds["transformers"], self.seconds[name], strict=True)
        return statistics.median(peer / ours for peer, ours in pairs)


def ours(served: ServedModel, batch: Sequence[SequencePages]) -> Callable[[], None]:
    tokens = [7] * len(batch)

    def step() -> None:
        with torch.inference_mode():
            tokens[:] = run_step(served, batch, tokens).argmax(-1).tolist()

    return step


def peers(
    served: ServedModel, untouched: PreTrainedModel, batch: int, tokens: int
) -> Callable[[], None]:
    cache = random_dynamic_cache(served, batch, tokens)
    ids = torch.full((batch, 1), 7)

    def step() -> None:
        with torch.inference_mode():
            logits = untouched(input_ids=ids, past_key_values=cache, use_cache=True).logits
            ids[:, 0] = logits[:, -1].argmax(-1)

    return step


def without_context(served: ServedModel, batch: int) -> Callable[[], None]:
    ids = torch.full((batch, 1), 7)

    def step() -> None:
        forward(served, ids, ids, NoContext(), logits=True)

    return step


def untouched_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model of transformers alone, with its fastest attention on CPU."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared)
    copied.set_attn_implementation("sdpa")
    return copied


def hold(
    served: ServedModel,
    untouched: PreTrainedModel,
    batch: int,
    tokens: int,
    rounds: int,
    *,
    with_full: bool,
) -> Contest:
    """Let the contestants take turns, one step each a round."""
    more = rounds + _WARM_UP_STEPS
    compact = open_random(
        served, coverage_rules(served.shapes, tokens, KEPT_RATIO), batch, tokens, more
    )
    steps = {
        "transformers": peers(served, untouched, batch, tokens),
        "compact": ours(served, compact),
        "no context": without_context(served, batch),
    }
    if with_full:
        full = open_random(served, full_rules(served.shapes, tokens), batch, tokens, more)
        steps["full"] = ours(served, full)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in track(range(-_WARM_UP_STEPS, rounds), f"batch {batch}", transient=True):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if number >= 0:
                seconds[name].append(time.perf_counter() - begin)
    rows = sum(sum(map(sum, pages.row_counts())) for pages in compact)
    row_bytes = 2 * served.shapes[0].head_size * served.dtype.itemsize
    return Contest(batch, tokens, seconds, rows * row_bytes)


def read_bytes_per_second() -> float:
    """Measure the rate of reading memory, by a sum over more bytes than any cache holds."""
    floats = torch.ones(_BANDWIDTH_FLOATS)
    best = 0.0
    for _ in range(6):
        begin = time.perf_counter()
        floats.sum()
        best = max(best, floats.nbytes / (time.perf_counter() - begin))
    return best


def measure(rounds: int) -> tuple[dict[str, Figure], list[Table]]:
    """The figures by name, and tables for people."""
    served = load_model("smollm2")
    untouched = untouched_copy(served.model)
    prepare_for_small_batches(served.model)
    bandwidth = read_bytes_per_second()
    large = hold(served, untouched, 8, 4096, rounds, with_full=True)
    small = hold(served, untouched, 1, 1024, 2 * rounds, with_full=False)
    limit = large.median("no context") + large.compact_bytes / bandwidth
    figures = {
        "ratio_compact_b8_c4096": Figure(large.ratio("compact"), "ratio", _PEER, 4.5),
        "ratio_full_b8_c4096": Figure(large.ratio("full"), "ratio", _PEER, 2.2),
        "ratio_compact_b1_c1024": Figure(small.ratio("compact"), "ratio", _PEER, 1.5),
        "fraction_of_limit_b8_c4096": Figure(
            limit / large.median("compact"), "ratio", _LIMIT, 0.75
        ),
    }
    caption = (
        f"limit of compact: {limit * 1e3:.0f} ms, a forward without context and "
        f"{large.compact_bytes / 1e6:.0f} MB of kept rows at {bandwidth / 1e9:.1f} GB/s"
    )
    return figures, [_table(large, caption), _table(small, "")]


def _table(contest: Contest, caption: str) -> Table:
    table = Table(
        title=f"{contest.batch} sequences of {contest.tokens} tokens, "
        f"{torch.get_num_threads()} threads",
        caption=caption,
    )
    for column in ("cache", "ms a step", "best", "tokens a second", "times the peer"):
        table.add_column(column, justify="left" if column == "cache" else "right")
    for name in contest.seconds:
        step = contest.median(name)
        table.add_row(
            name,
            f"{step * 1e3:.1f}",
            f"{min(contest.seconds[name]) * 1e3:.1f}",
            f"{contest.batch / step:.1f}",
            f"{contest.ratio(name):.2f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures, tables = measure(options.rounds)
    conditions = {"model": "smollm2", "dtype": "float32"} | {
        name: getattr(options, name) for name in ("rounds", "threads")
    }
    report(options, figures, tables, conditions)


if __name__ == "__main__":
    main()
