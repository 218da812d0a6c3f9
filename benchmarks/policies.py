"""Compare all policies at similar sizes: KL against the full cache, and pass keys found.

The passages and keys are those of `benchmarks.fidelity`. Every fed token is kept beside the
compact prompt, so KL is the loss of the prompt's own compaction; pass keys are asked for with each
head's rule applied.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.fidelity_report import (
    Figure,
    key_figures,
    keys_table,
    measured_figures,
    measured_table,
)
from benchmarks.pass_key import found_keys
from benchmarks.policy_settings import PASS_KEY, SIZES
from kvstore.calibration import Calibration
from services.evaluation.forced_runs import Measured, with_later_kept
from services.evaluation.passages import OFFSETS, Passage, hidden_keys, passages
from services.evaluation.settings import Setting
from services.prefill.calibration.query_filters import measure_filters
from services.prefill.calibration.retrieval_probe import probe_retrieval
from services.prefill.calibration.sensitivity import measure_sensitivity
from services.runtime.model.served_model import ServedModel, load_model

# of the best policy, by percent of the rows
_KL_TARGETS = {30: 0.010, 20: 0.018, 10: 0.050}
# of the default policy, one pass, at other sizes than the default's: setting and target
_DEFAULT_TARGETS = {
    30: ("lookback_30_r10", 0.012),
    20: ("lookback_20_r5", 0.020),
    10: ("lookback_10_r2_s", 0.050),
}
# budgets are met to a row a head
_ROUNDING = 0.002

_Bar = Callable[[str, int], Callable[[], None]]


def compare_sizes(
    served: ServedModel,
    calibration: Calibration,
    texts: Sequence[Passage],
    settings: Sequence[Setting],
    bar: _Bar,
) -> tuple[Table, dict[str, Figure]]:
    """KL, perplexity and first choices of every setting, on all passages."""
    on_step = bar("sizes", len(settings) * len(texts))
    results = with_later_kept(served, texts, settings, on_step, calibration)
    figures = best_at_rows(results) | default_at_rows(results)
    for one in results:
        figures |= measured_figures(one.name, one)
    return measured_table("Prompt compacted, every later token kept", results), figures


def best_at_rows(results: Sequence[Measured]) -> dict[str, Figure]:
    """The lowest KL within each share of the rows, of those that have any setting."""
    found: dict[str, Figure] = {}
    for percent, target in _KL_TARGETS.items():
        within = [one for one in results if one.rows <= percent / 100 + _ROUNDING]
        if within:
            kl = min(float(one.divergence.kl.mean()) for one in within)
            against = f"the full cache, at most {percent} % of its rows"
            figure: Figure = {"value": kl, "unit": "nats", "against": against, "target": target}
            found[f"kl_at_{percent}"] = figure
    return found


def default_at_rows(results: Sequence[Measured]) -> dict[str, Figure]:
    """KL of the default policy at each share of the rows, and over H2O's at a fifth of them."""
    kls = {one.name: float(one.divergence.kl.mean()) for one in results}
    found: dict[str, Figure] = {
        f"kl_default_at_{percent}": {
            "value": kls[name],
            "unit": "nats",
            "against": f"the full cache, {percent} % of its rows",
            "target": target,
        }
        for percent, (name, target) in _DEFAULT_TARGETS.items()
        if name in kls
    }
    name, _ = _DEFAULT_TARGETS[20]
    if name in kls and "h2o_20" in kls:
        ratio = kls[name] / kls["h2o_20"]
        against = "H2O on the same passages"
        found["kl_ratio_h2o_20"] = {
            "value": ratio,
            "unit": "ratio",
            "against": against,
            "target": 0.4,
        }
    return found


def ask_for_keys(
    served: ServedModel,
    calibration: Calibration,
    prompt: int,
    settings: Sequence[Setting],
    bar: _Bar,
) -> tuple[Table, dict[str, Figure]]:
    """Count the hidden pass keys that each setting finds."""
    cases = hidden_keys(served, prompt)
    policies = [setting.policy for setting in settings]
    found = found_keys(served, cases, policies, bar("pass keys", len(cases)), calibration)
    keys = [(s.name, count, len(cases)) for s, count in zip(settings, found, strict=True)]
    return keys_table(keys), key_figures(keys)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    served = load_model(options.model)
    tokens, only = options.probe_tokens, options.settings
    sizes, keys = (
        [setting for setting in known if not only or setting.name in only]
        for known in (SIZES, PASS_KEY)
    )
    calibration = Calibration(
        probe_retrieval(served, tokens),
        measure_filters(served, tokens),
        measure_sensitivity(served, tokens),
    )
    figures: dict[str, Figure] = {}
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:

        def bar(title: str, steps: int) -> Callable[[], None]:
            task = progress.add_task(title, total=steps)
            return lambda: progress.advance(task)

        prompt, offsets = options.prompt_tokens, OFFSETS[: options.passages]
        texts = passages(served, prompt, options.fed_tokens, offsets)
        for part in options.parts:
            table, found = (
                compare_sizes(served, calibration, texts, sizes, bar)
                if part == "sizes"
                else ask_for_keys(served, calibration, prompt, keys, bar)
            )
            Console().print(table)
            figures |= found
            if options.json:
                _write(options, served, figures)


def _write(options: argparse.Namespace, served: ServedModel, figures: dict[str, Figure]) -> None:
    document = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": options.machine,
        "conditions": {
            "model": options.model,
            "dtype": served.fingerprint.dtype,
            "python": platform.python_version(),
            "prompt": options.prompt_tokens,
            "fed": options.fed_tokens,
            "passages": options.passages,
        },
        "figures": figures,
    }
    options.json.write_text(json.dumps(document, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompt-tokens", type=int, default=1536)
    parser.add_argument("--fed-tokens", type=int, default=256)
    parser.add_argument("--passages", type=int, default=len(OFFSETS), help="the first so many")
    parser.add_argument("--probe-tokens", type=int, default=2048, help="of calibration's texts")
    parser.add_argument("--parts", nargs="+", choices=("sizes", "keys"), default=["sizes", "keys"])
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="its kind")
    return parser


if __name__ == "__main__":
    main()
