"""Count the hidden sentences that a compact cache finds, of those that the full cache finds.

The question comes after compression, so policies cannot use it. The set, 72 cases of 1,500 to 4,000
tokens over a grid of depths, is that of `services.evaluation.needles`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from rich.progress import Progress
from rich.table import Table

from benchmarks.figures import Figure, add_options, report, write
from services.evaluation.answers import ask_apart
from services.evaluation.needles import DEPTHS, LENGTHS, needles
from services.evaluation.prompt_record import PromptRecord
from services.evaluation.run import calibration_for
from services.evaluation.settings import Setting, parse_settings
from services.evaluation.tasks import Task, Writer
from services.prefill.calibration.calibrations import Calibrations
from services.runtime.model.served_model import ServedModel, default_cache_dir, load_model

_FULL = "full"


def find_needles(
    served: ServedModel,
    tasks: Sequence[Task],
    settings: Sequence[Setting],
) -> Iterator[dict[str, list[tuple[bool, float]]]]:
    """Yield, after every task, the outcomes so far by setting.

    An outcome: whether the sentence was found, and the bytes as a share of a dense float16 cache's.
    """
    calibration = calibration_for(Calibrations(served, default_cache_dir()), settings)
    found: dict[str, list[tuple[bool, float]]] = {setting.name: [] for setting in settings}
    with torch.inference_mode():
        for task in tasks:
            record = PromptRecord(served, task.context, calibration)
            for setting in settings:
                compacted = record.compact_timed(setting.policy, setting.codec)
                answered = ask_apart(served, task, compacted)
                found[setting.name].append((answered.score == 1, answered.costs["fp16_bytes"]))
            yield found


def figures(found: dict[str, list[tuple[bool, float]]], default: str) -> dict[str, Figure]:
    """`needle_ratio_default` is the default's share of what the full cache finds."""
    cases = len(found[_FULL])
    counts = {name: sum(hit for hit, _ in hits) for name, hits in found.items()}
    full = counts[_FULL]
    ratios = {
        f"needle_ratio_{'default' if name == default else name}": Figure(
            count / full if full else 0.0, "ratio", f"the full cache, {full} of {cases}"
        )
        for name, count in counts.items()
        if name != _FULL
    }
    sizes = {
        f"needle_bytes_{'default' if name == default else name}": Figure(
            sum(share for _, share in hits) / len(hits), "ratio", "the dense cache in float16"
        )
        for name, hits in found.items()
        if name != _FULL
    }
    return {"needle_full": Figure(full / cases, "ratio", "all cases", 0.8), **ratios, **sizes}


def _table(found: dict[str, list[tuple[bool, float]]]) -> Table:
    table = Table("setting", "found", "of", "bytes of fp16", title="Needles, query-agnostic")
    for name, hits in found.items():
        size = sum(share for _, share in hits) / len(hits)
        table.add_row(name, str(sum(hit for hit, _ in hits)), str(len(hits)), f"{size:.3f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    others = options.policy or ["quality", "small", "coverage"]
    settings = parse_settings([_FULL, options.default, *others])
    served = load_model(options.model)
    tasks = list(needles(Writer(served), options.lengths, DEPTHS[:: options.every]))
    conditions: dict[str, object] = {"model": options.model, "lengths": list(options.lengths)}
    found: dict[str, list[tuple[bool, float]]] = {}
    with Progress() as progress:
        bar = progress.add_task("needles", total=len(tasks))
        for found in find_needles(served, tasks, settings):
            conditions["cases"] = len(found[_FULL])
            write(options, figures(found, options.default), conditions)
            progress.advance(bar)
    report(options, figures(found, options.default), [_table(found)], conditions)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--default", default="balanced", help="the service's default policy")
    parser.add_argument("--policy", action="append", help="a setting beside the default's")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--every", type=int, default=1, help="only each so many of the depths")
    add_options(parser)
    return parser


if __name__ == "__main__":
    main()
