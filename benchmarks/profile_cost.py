"""Measure the time that profiling adds to a CPU prefill, and the error of sampling rows.

Each repetition runs the same prefill unprofiled, with all rows and with 512 rows, one after
another; a share is the median of the repetitions' ratios, so that drift of the
machine cancels. Shares of wall time and of processor time are given: on a shared machine the
former is noisy.
Weights are SmolLM2-135M's and the text is English prose out of Python's own documentation.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from kvstore.attention_input import AttentionInput
from kvstore.cache import LayerShape
from kvstore.kernels.prefill_attention.op import prefill_attention
from kvstore.plans import AttentionProfile, ProfileRequest
from kvstore.profiling import Profiler
from kvstore.rules import share_of
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel, load_model

EDGES = (0, 16, 32, 64, 128, 256, 512, 1024)
SAMPLED_ROWS = 512
# the columns whose recovered mass a sample must get right: a window and the heaviest fifth
WINDOW = 64
HEAVIEST_RATIO = 0.2

# (name, against, target); shares of the unprofiled prefill, and the share of attention mass
FIGURES = {
    "profile_share_all": ("the unprofiled prefill", 0.40),
    "profile_share_512": ("the unprofiled prefill", 0.08),
    "profile_cpu_share_all": ("the unprofiled prefill, processor time", 0.40),
    "profile_cpu_share_512": ("the unprofiled prefill, processor time", 0.08),
    "sampling_error_recovered": ("recovered mass from all rows", 0.002),
}


class ProfilingHook:
    """Dense prefill attention, with a profile of each layer if asked for."""

    def __init__(self, request: ProfileRequest | None) -> None:
        self._request = request
        self.profiles: list[AttentionProfile] = []

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        q, k, v = inputs.q, inputs.k, inputs.v
        out, lse = prefill_attention(
            q[0], k[0], v[0], scale=inputs.scale, sliding_window=inputs.sliding_window
        )
        if self._request is not None:
            shape = LayerShape(k.shape[1], q.shape[1], q.shape[3], inputs.sliding_window)
            profiler = Profiler(self._request, shape, q.shape[2])
            profiler.observe(q[0], k[0], v[0], lse, 0, inputs.scale)
            self.profiles.append(profiler.profile())
        return out.transpose(0, 1)[None]


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the prefill."""

    name: str
    request: ProfileRequest | None


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of one prefill: on the clock, and of all processors together."""

    wall: float
    processor: float


def variants(tokens: int) -> tuple[Variant, ...]:
    """The unprofiled one first."""
    edges = tuple(sorted({*EDGES, share_of(0.3, tokens)}))
    return (
        Variant("unprofiled", None),
        Variant("all rows", ProfileRequest(edges)),
        Variant("512 rows", ProfileRequest(edges, SAMPLED_ROWS)),
        Variant("all rows, value-weighted", ProfileRequest(edges, 0, True)),
        Variant("512 rows, value-weighted", ProfileRequest(edges, SAMPLED_ROWS, True)),
    )


def prose(served: ServedModel, tokens: int) -> torch.Tensor:
    """Token ids `[1, tokens]` of documentation that every Python carries."""
    modules = ("decimal", "argparse", "logging", "unittest.mock", "typing", "subprocess", "random")
    documented = [importlib.import_module(name) for name in modules]
    members = [m for module in documented for _, m in sorted(inspect.getmembers(module), key=str)]
    text = "\n\n".join(inspect.getdoc(part) or "" for part in (*documented, *members))
    ids = served.tokenizer.encode(text)[:tokens]
    assert len(ids) == tokens, "not enough documentation"
    return torch.tensor([ids])


def timed_prefill(
    served: ServedModel, ids: torch.Tensor, request: ProfileRequest | None
) -> tuple[Taken, list[AttentionProfile]]:
    """Run one prefill; return its times and its profiles."""
    hook = ProfilingHook(request)
    wall, processor = time.perf_counter(), time.process_time()
    forward(served, ids, torch.arange(ids.shape[1])[None], hook, logits=False)
    return Taken(time.perf_counter() - wall, time.process_time() - processor), hook.profiles


def recovered(profile: AttentionProfile, columns: torch.Tensor) -> torch.Tensor:
    """Mass in `columns` bool `[H, T]` or closer than the window, mean over G: `[H]`."""
    lost = profile.beyond(WINDOW).double().mean(1).where(~columns, 0.0)
    return 1 - lost.sum(-1) / profile.tokens


def sampling_errors(exact: list[AttentionProfile], sampled: list[AttentionProfile]) -> torch.Tensor:
    """Return each head's error of attention coverage, for the columns that the sample chose."""
    errors = []
    for whole, part in zip(exact, sampled, strict=True):
        far = part.beyond(WINDOW).mean(1)
        chosen = torch.zeros_like(far, dtype=torch.bool)
        heaviest = far.topk(share_of(HEAVIEST_RATIO, whole.tokens), dim=-1).indices
        chosen.scatter_(1, heaviest, True)
        errors.append((recovered(whole, chosen) - recovered(part, chosen)).abs())
    return torch.cat(errors)


def measure(tokens: int, repetitions: int) -> tuple[dict[str, float], Table]:
    """The figures by name, and all timings for people."""
    served = load_model("smollm2")
    ids = prose(served, tokens)
    seconds: dict[str, list[Taken]] = {v.name: [] for v in variants(tokens)}
    profiles: dict[str, list[AttentionProfile]] = {}
    timed_prefill(served, ids[:, : tokens // 8], variants(tokens)[1].request)
    for variant in track(variants(tokens) * repetitions, "prefilling", transient=True):
        taken, profiles[variant.name] = timed_prefill(served, ids, variant.request)
        seconds[variant.name].append(taken)
    base = seconds["unprofiled"]
    shares = {
        name: _added([t.wall for t in times], [t.wall for t in base])
        for name, times in seconds.items()
    }
    processor = {
        name: _added([t.processor for t in times], [t.processor for t in base])
        for name, times in seconds.items()
    }
    errors = sampling_errors(profiles["all rows"], profiles["512 rows"])
    figures = {
        "profile_share_all": shares["all rows"],
        "profile_share_512": shares["512 rows"],
        "profile_cpu_share_all": processor["all rows"],
        "profile_cpu_share_512": processor["512 rows"],
        "sampling_error_recovered": float(errors.mean()),
    }
    return figures, timing_table(tokens, seconds, shares, processor, errors)


def _added(times: list[float], base: list[float]) -> float:
    return statistics.median(a / b - 1 for a, b in zip(times, base, strict=True))


def timing_table(
    tokens: int,
    seconds: dict[str, list[Taken]],
    shares: dict[str, float],
    processor: dict[str, float],
    errors: torch.Tensor,
) -> Table:
    table = Table(
        title=f"Prefill of {tokens} tokens, {torch.get_num_threads()} threads",
        caption=f"recovered mass from 512 rows: off by {errors.mean():.4f} in the mean, "
        f"{errors.max():.4f} at worst",
    )
    for column in ("profile", "median seconds", "added", "added processor time"):
        table.add_column(column, justify="left" if column == "profile" else "right")
    for name, times in seconds.items():
        median = statistics.median(t.wall for t in times)
        table.add_row(name, f"{median:.2f}", f"{shares[name]:.1%}", f"{processor[name]:.1%}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    values, table = measure(arguments.tokens, arguments.repetitions)
    figures = {
        name: {"value": values[name], "unit": "ratio", "against": against, "target": target}
        for name, (against, target) in FIGURES.items()
    }
    Console().print(table)
    Console().print(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
