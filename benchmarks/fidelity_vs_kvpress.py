"""Policies against ten of kvpress's presses: the same model, passages and sizes.

kvpress lives in an environment of its own, which is made where there is none. Both sides are
teacher-forced with every later token kept. What was measured of kvpress stays beside its
environment, in `presses.jsonl`: the same command again goes on from there. A press that masks holds
all rows: its figures stand at the bytes it really holds, and beside it at its nominal size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure as Picture
from rich.progress import Progress
from rich.table import Table

from benchmarks.figures import Figure, add_options, report
from services.evaluation.forced_runs import Measured, with_later_kept
from services.evaluation.passages import OFFSETS, Passage, passages
from services.evaluation.run import calibration_for
from services.evaluation.settings import Setting, parse_settings
from services.prefill.calibration.calibrations import Calibrations
from services.runtime.model.served_model import ServedModel, default_cache_dir, load_model

_PRESSES = 10
_SETTINGS = (
    "full",
    "quality",
    "balanced",
    "small",
    # the default policy at the sizes of the presses; at .3 it is `balanced`
    "lookback:budget=0.2,retrieval_ratio=0.05",
    "lookback:budget=0.1,retrieval_ratio=0.025,sensitivity=true,queries=1024",
    *(f"{policy}:budget={budget}" for policy in ("h2o", "snapkv") for budget in (0.3, 0.2, 0.1)),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Press:
    """One press at one ratio, the mean over all passages; bytes of the dense cache's."""

    name: str
    ratio: float
    kl: float
    real_bytes: float


def environment(folder: Path) -> Path:
    """The Python of an environment with kvpress and our torch, made in `folder` if need be."""
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        venv.create(folder, with_pip=True)
        version = str(torch.__version__).partition("+")[0]
        wanted = [f"torch=={version}", "kvpress>=0.5,<0.6"]
        # fire, plain Python, is published as source alone
        wheels = ["--only-binary", ":all:", "--no-binary", "fire"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wheels, *wanted], check=True)
        ready.touch()
    return python


def presses(
    python: Path,
    model: str,
    texts: Mapping[str, Passage],
    ratios: Sequence[float],
    log: Path,
    progress: Progress,
) -> list[Press]:
    """Every press's means, measured in a process of its own.

    What was measured of a text whose every line is in `log` is taken from there.
    """
    bar = progress.add_task("kvpress", total=_PRESSES * len(ratios) * len(texts))
    found: dict[tuple[str, float], list[dict[str, float]]] = {}
    logged = _logged(log)
    for name, passage in texts.items():
        lines = [line for line in logged if line["text"] == name and line["ratio"] in ratios]
        if len(lines) < _PRESSES * len(ratios):
            lines = []
            for line in _lines(python, model, passage, ratios):
                lines.append(line)
                progress.advance(bar)
            with log.open("a") as file:
                file.writelines(json.dumps({**line, "text": name}) + "\n" for line in lines)
        else:
            progress.advance(bar, len(lines))
        for line in lines:
            found.setdefault((str(line["press"]), float(line["ratio"])), []).append(line)
    return [
        Press(
            name,
            ratio,
            statistics.mean(line["kl"] for line in lines),
            statistics.mean(line["real_bytes"] for line in lines),
        )
        for (name, ratio), lines in found.items()
    ]


def _logged(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _lines(
    python: Path, model: str, passage: Passage, ratios: Sequence[float]
) -> Iterator[dict[str, Any]]:
    work = {
        "threads": torch.get_num_threads(),
        "ratios": list(ratios),
        "passages": [dataclasses.asdict(passage)],
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(work, file)
        file.flush()
        program = Path(__file__).with_name("kvpress_peer.py")
        command = [python, "-W", "ignore", program, model, file.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            yield from map(json.loads, process.stdout)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)


def ours(
    served: ServedModel, texts: Sequence[Passage], settings: Sequence[Setting], progress: Progress
) -> list[Measured]:
    bar = progress.add_task("headwise", total=len(settings) * len(texts))
    calibration = calibration_for(Calibrations(served, default_cache_dir()), settings)
    with torch.inference_mode():
        return with_later_kept(served, texts, settings, lambda: progress.advance(bar), calibration)


def draw(measured: Sequence[Measured], peers: Sequence[Press], file: Path) -> None:
    """KL against bytes: ours, each press at its real bytes and, hollow, at its nominal size."""
    picture = Picture(figsize=(9, 6), layout="constrained")
    axes = picture.add_subplot()
    axes.grid(visible=True, which="both", linewidth=0.3)
    compact = [one for one in measured if one.name != "full"]
    for one in compact:
        kl = float(one.divergence.kl.mean())
        axes.plot([one.bytes], [kl], "k*")
        axes.annotate(one.name, (one.bytes, kl), (5, 3), textcoords="offset points", fontsize=7)
    for name in dict.fromkeys(press.name for press in peers):
        points = sorted((p.real_bytes, p.ratio, p.kl) for p in peers if p.name == name)
        kl = [point[2] for point in points]
        (real,) = axes.plot([point[0] for point in points], kl, "o-", label=name)
        color = real.get_color()
        axes.plot([p[1] for p in points], kl, "o", color=color, fillstyle="none")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("bytes / bytes of the dense cache (filled: real, hollow: nominal)")
    axes.set_ylabel("mean KL(full‖compact), nats")
    axes.legend(fontsize=7)
    picture.savefig(file)


def figures(measured: Sequence[Measured], peers: Sequence[Press]) -> dict[str, Figure]:
    """Each side's KL and bytes by name."""
    found = {}
    for one in measured:
        found[f"{one.name} kl"] = Figure(float(one.divergence.kl.mean()), "nats", "the full cache")
        found[f"{one.name} bytes"] = Figure(one.bytes, "ratio", "the dense cache")
    for press in peers:
        name = f"kvpress {press.name} {press.ratio:g}"
        found[f"{name} kl"] = Figure(press.kl, "nats", "the full cache")
        found[f"{name} bytes"] = Figure(press.real_bytes, "ratio", "the dense cache")
    return found


def _table(measured: Sequence[Measured], peers: Sequence[Press]) -> Table:
    table = Table("what", "nominal", "real bytes", "KL", title="Every later token kept")
    for one in measured:
        kl = float(one.divergence.kl.mean())
        table.add_row(one.name, f"{one.rows:.3f}", f"{one.bytes:.3f}", f"{kl:.4f}")
    for press in peers:
        row = (f"{press.ratio:.3f}", f"{press.real_bytes:.3f}", f"{press.kl:.4f}")
        table.add_row(f"kvpress {press.name}", *row)
    return table


def main() -> None:
    options = _parser().parse_args()
    python = environment(options.venv)
    served = load_model(options.model)
    offsets = OFFSETS[: options.passages]
    texts = passages(served, options.prompt_tokens, options.fed_tokens, offsets)
    sizes = f"{options.prompt_tokens} and {options.fed_tokens} tokens, {options.model}"
    named = {f"{first}: {sizes}": text for first, text in zip(offsets, texts, strict=True)}
    settings = parse_settings(options.policy or _SETTINGS)
    folder = served.model.config.name_or_path
    with Progress() as progress:
        peers = presses(
            python, folder, named, options.ratio, options.venv / "presses.jsonl", progress
        )
        measured = ours(served, texts, settings, progress)
    if options.plot:
        draw(measured, peers, options.plot)
    conditions = {
        "model": options.model,
        "prompt": options.prompt_tokens,
        "fed": options.fed_tokens,
        "passages": options.passages,
    }
    report(options, figures(measured, peers), [_table(measured, peers)], conditions)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--venv", type=Path, default=default_cache_dir().parent / "peers" / "kvpress"
    )
    parser.add_argument("--policy", action="append", help="a setting of ours; repeatable")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.3, 0.2, 0.1])
    parser.add_argument("--prompt-tokens", type=int, default=1536)
    parser.add_argument("--fed-tokens", type=int, default=256)
    parser.add_argument("--passages", type=int, default=len(OFFSETS), help="the first so many")
    parser.add_argument("--plot", type=Path, help="draw the plot into this file")
    add_options(parser)
    return parser


if __name__ == "__main__":
    main()
