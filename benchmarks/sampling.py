"""Choosing the next tokens of a batch of sequences, against transformers' own processors.

The peer is what `generate` does with the same parameters, for the whole batch at once: its logits
processors, softmax and multinomial. Logits are the model's own after real text, and the contestants
take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.table import Table
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from benchmarks.figures import Figure, add_options, report
from benchmarks.profile_cost import prose
from services.decode.engine.sampling import Sampler, SamplingParameters, choose
from services.runtime.model.served_model import load_model
from services.runtime.process.allocator import keep_freed_memory

_CONTEXT = 1024
_PARAMETERS = {
    "temperature": SamplingParameters(0.7, seed=1),
    "top_k": SamplingParameters(0.7, top_k=50, seed=1),
    "top_p": SamplingParameters(0.7, top_p=0.95, seed=1),
    "repetition": SamplingParameters(0.7, repetition_penalty=1.1, seed=1),
}


def peer(parameters: SamplingParameters) -> LogitsProcessorList:
    """Return the processors that transformers' `generate` would build."""
    processors = LogitsProcessorList()
    if parameters.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(parameters.repetition_penalty))
    processors.append(TemperatureLogitsWarper(parameters.temperature))
    if parameters.top_k:
        processors.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p < 1:
        processors.append(TopPLogitsWarper(parameters.top_p))
    return processors


def seconds(turns: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median time of each, taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for round_ in range(rounds + 2):
        for name, act in turns.items():
            began = time.perf_counter()
            act()
            # the first two warm up
            if round_ > 1:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in taken.items()}


@torch.inference_mode()
def measure(sequences: int, rounds: int) -> tuple[dict[str, Figure], Table]:
    served = load_model("smollm2")
    ids = prose(served, _CONTEXT * sequences).view(sequences, _CONTEXT)
    served.model.set_attn_implementation("sdpa")
    logits = served.model(ids, logits_to_keep=1).logits[:, -1].clone()
    table = Table("parameters", "ms", "transformers, ms", "speed-up")
    figures = {}
    for name, parameters in _PARAMETERS.items():
        samplers = [Sampler(parameters.for_answer(n), ids[n].tolist()) for n in range(sequences)]
        processors = peer(parameters)

        def draw(processors: LogitsProcessorList = processors) -> torch.Tensor:
            return torch.multinomial(processors(ids, logits).softmax(-1), 1)

        def chosen(samplers: list[Sampler] = samplers) -> object:
            return choose(samplers, logits)

        taken = seconds({"ours": chosen, "transformers": draw}, rounds)
        ratio = taken["transformers"] / taken["ours"]
        ms = [f"{taken[who] * 1e3:.2f}" for who in ("ours", "transformers")]
        table.add_row(name, *ms, f"{ratio:.1f}")
        figures[f"sampling_speedup_{name}_b{sequences}"] = Figure(
            ratio, "ratio", "transformers' logits processors and multinomial, batched"
        )
    table.title = (
        f"{sequences} sequences, {logits.shape[-1]} tokens, {torch.get_num_threads()} threads"
    )
    return figures, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    add_options(parser)
    options = parser.parse_args()
    # as the services do
    keep_freed_memory()
    figures, tables = {}, []
    for sequences in (1, 8):
        more, table = measure(sequences, options.rounds)
        figures |= more
        tables.append(table)
    report(options, figures, tables, {"torch": torch.__version__, "model": "smollm2"})


if __name__ == "__main__":
    main()
