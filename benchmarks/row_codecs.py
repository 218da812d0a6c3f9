"""Measure the loss of codecs, alone and combined with policies: KL against measured bytes.

The passages are those of `benchmarks.fidelity`, every fed token kept as the model computed it, so
that KL is the loss of the prompt's own compaction and encoding. Bytes are those of the tensors as
shipped, scales, positions, scores and flags included, over the dense cache in float16.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from kvstore.calibration import Calibration
from kvstore.policies import Policy, parse_policy
from kvstore.row_codecs import RowCodec
from services.evaluation.passages import OFFSETS, Passage, passages
from services.evaluation.prompt_record import PromptRecord
from services.evaluation.run import calibration_for
from services.evaluation.settings import Setting
from services.evaluation.teacher_forcing import compare, dense_logits, kept_logits
from services.prefill.calibration.calibrations import Calibrations
from services.runtime.model.served_model import ServedModel, default_cache_dir, load_model


def _lookback(percent: int, retrieval_percent: int) -> dict[str, Policy]:
    parameters = {"budget": percent / 100, "retrieval_ratio": retrieval_percent / 100}
    return {f"lookback_{percent}_r{retrieval_percent}": parse_policy("lookback", parameters)}


_POLICIES: dict[str, Policy] = {
    "full": parse_policy("full", {}),
    "fastgen_t95": parse_policy("fastgen", {"recovery": 0.95}),
    "coverage_t99": parse_policy("coverage", {"recovery": 0.99}),
    "coverage_t98": parse_policy("coverage", {"recovery": 0.98}),
    "coverage_t95": parse_policy("coverage", {"recovery": 0.95}),
    # the presets, and one between the smaller two
    **_lookback(45, 12),
    **_lookback(30, 10),
    **_lookback(20, 5),
    **_lookback(15, 5),
    "attention_matching_55": parse_policy("attention_matching", {"budget": 0.55}),
    "attention_matching_28": parse_policy("attention_matching", {"budget": 0.28}),
    "attention_matching_19": parse_policy("attention_matching", {"budget": 0.19}),
}
_CODECS = ("model", "fp8", "int8", "int8/int4", "int4")
# targets of quality at a size: the lowest KL at no more than this share of the fp16 bytes
_SIZES = {"kl_at_bytes_25": 0.25, "kl_at_bytes_12": 0.125, "kl_at_bytes_6": 0.0625}
_TARGETS = {"kl_at_bytes_25": 0.003, "kl_at_bytes_12": 0.010, "kl_at_bytes_6": 0.030}

_Setting = tuple[str, str]
# KL, rows and bytes
_Figures = tuple[float, float, float]


def measure(
    served: ServedModel,
    passage: Passage,
    settings: Sequence[_Setting],
    calibration: Calibration | None = None,
) -> dict[_Setting, _Figures]:
    """Every policy under every codec on one passage."""
    record = PromptRecord(served, passage.prompt, calibration)
    exact = dense_logits(served, passage.prompt, passage.continuation)
    found = {}
    for policy, codec in track(settings, "settings"):
        compacted = record.compact_timed(_POLICIES[policy], RowCodec.parse(codec))
        logits = kept_logits(served, compacted.layers, compacted.tokens, passage.continuation)
        kl = float(compare(exact, logits, passage.targets).kl.mean())
        found[policy, codec] = kl, compacted.costs["rows"], compacted.costs["fp16_bytes"]
    return found


def joined(parts: Sequence[dict[_Setting, _Figures]]) -> dict[_Setting, _Figures]:
    """The passages' means."""
    return {
        setting: (
            sum(part[setting][0] for part in parts) / len(parts),
            sum(part[setting][1] for part in parts) / len(parts),
            sum(part[setting][2] for part in parts) / len(parts),
        )
        for setting in parts[0]
    }


def best_at_sizes(found: dict[_Setting, _Figures]) -> dict[str, float]:
    """The lowest KL within each size, of those that have any setting."""
    return {
        name: min(kls)
        for name, most in _SIZES.items()
        if (kls := [kl for kl, _, share in found.values() if share <= most])
    }


def figures_of(found: dict[_Setting, _Figures]) -> dict[str, dict[str, object]]:
    """Return the figures in the form of every benchmark."""
    units = {"kl": "nats", "rows": "ratio", "fp16_bytes": "ratio"}
    figures: dict[str, dict[str, object]] = {
        name: {
            "value": value,
            "unit": "nats",
            "against": f"the full cache, at most {_SIZES[name]:.2%} of its float16 bytes",
            "target": _TARGETS[name],
        }
        for name, value in best_at_sizes(found).items()
    }
    for (policy, codec), values in found.items():
        for (name, unit), value in zip(units.items(), values, strict=True):
            against = "the full cache" if name == "kl" else "the dense cache"
            figures[f"{policy}.{codec}.{name}"] = {
                "value": value,
                "unit": unit,
                "against": against,
                "target": None,
            }
    return figures


def table_of(found: dict[_Setting, _Figures]) -> Table:
    table = Table("policy", "codec", "rows", "bytes of fp16", "KL")
    for (policy, codec), (kl, rows, share) in found.items():
        table.add_row(policy, codec, f"{rows:.3f}", f"{share:.3f}", f"{kl:.5f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    served = load_model(options.model)
    offsets = OFFSETS[: options.passages]
    texts = passages(served, options.prompt_tokens, options.fed_tokens, offsets)
    settings = [(policy, codec) for policy in options.policies for codec in options.codecs]
    needed = [Setting(policy, _POLICIES[policy]) for policy in options.policies]
    calibration = calibration_for(Calibrations(served, default_cache_dir()), needed)
    parts: list[dict[_Setting, _Figures]] = []
    for text in texts:
        parts.append(measure(served, text, settings, calibration))
        found = joined(parts)
        if options.json:
            # after each passage: what was measured is not lost
            document = _document(options, served, parts, found)
            options.json.write_text(json.dumps(document, indent=2) + "\n")
    Console().print(table_of(found), best_at_sizes(found))


def _document(
    options: argparse.Namespace,
    served: ServedModel,
    parts: Sequence[dict[_Setting, _Figures]],
    found: dict[_Setting, _Figures],
) -> dict[str, object]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": options.machine,
        "conditions": {
            "model": options.model,
            "dtype": served.fingerprint.dtype,
            "python": platform.python_version(),
            "passages": len(parts),
            "prompt": options.prompt_tokens,
            "fed": options.fed_tokens,
        },
        "figures": figures_of(found),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--passages", type=int, default=len(OFFSETS))
    parser.add_argument("--prompt-tokens", type=int, default=1536)
    parser.add_argument("--fed-tokens", type=int, default=256)
    parser.add_argument("--policies", nargs="+", choices=_POLICIES, default=list(_POLICIES))
    parser.add_argument("--codecs", nargs="+", choices=_CODECS, default=list(_CODECS))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="its kind")
    return parser


if __name__ == "__main__":
    main()
