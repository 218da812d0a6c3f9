"""Figures of the README and of the presets are those of benchmarks/results."""

from __future__ import annotations

import json
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
POLICIES = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")


def figure(file: str, name: str) -> float:
    """One figure of a results file."""
    figures = json.loads((ROOT / "benchmarks" / "results" / file).read_text())["figures"]
    value = figures[name]
    return float(value["value"] if isinstance(value, dict) else value)


def test_rows_and_divergence_of_the_default_policy() -> None:
    rows = figure("default_policy.json", "lookback_30_r10_rows")
    assert (
        f"| rows that the default policy keeps of a prompt | {rows:.0%}".replace("%", " %")
        in README
    )
    assert f"| {figure('default_policy.json', 'kl_default_at_30'):.4f} nats |" in README


def test_hidden_sentences() -> None:
    full = 72 * figure("needles_default.json", "needle_full")
    found = full * figure("needles_default.json", "needle_ratio_default")
    assert f"the full cache finds {full:.0f} | {found:.0f} sentences |" in README


def test_decode_throughput() -> None:
    ratio = figure("decode_throughput.json", "ratio_compact_b8_c4096")
    assert f"| {ratio:.1f} times |" in README


def test_divergence_of_the_presets() -> None:
    for preset, setting in (
        ("`quality`", "lookback_45_r12"),
        ("`balanced`, the default", "lookback_30_r10"),
        ("`small`", "lookback_15_r5"),
    ):
        [row] = [line for line in POLICIES.splitlines() if line.startswith(f"| {preset} |")]
        kl = figure("codecs.json", f"{setting}.model.kl")
        rows = figure("codecs.json", f"{setting}.model.rows")
        assert row.endswith(
            f"| {rows:.0%}".replace("%", " %") + f" | {kl:.4f} |".replace("0.", ".")
        )
