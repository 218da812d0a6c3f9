"""A run as a page that needs nothing else, and as JSON."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence

from services.evaluation import plots
from services.evaluation.summary import Row, Summary

_STYLE = (
    "body{font:14px/1.45 sans-serif;max-width:72em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
)
_COSTS = {
    "rows": "rows",
    "bytes": "bytes",
    "fp16_bytes": "of fp16",
    "kept_bytes": "MiB",
    "prefill_seconds": "prefill s",
    "profile_seconds": "profile s",
    "compact_seconds": "compact s",
}
_FORCED = {
    "kl": "KL",
    "kept_kl": "KL, later kept",
    "top1": "top-1",
    "perplexity": "perplexity",
    "final_rows": "end rows",
}
_RETRIEVAL = {"score": "query-agnostic", "aware_score": "query-aware"}
_CONVERSATION = {
    "score": "shared context",
    "turns_score": "multi-turn",
    "load_seconds": "load s",
    "answer_seconds": "answers s",
}
_COLUMNS = {
    "forced": _FORCED,
    "needles": _RETRIEVAL,
    "ruler": _RETRIEVAL,
    "conversation": _CONVERSATION,
    "long": _FORCED,
}
_TITLES = {
    "forced": "A text's own continuation, teacher-forced",
    "needles": "Needles by length and depth",
    "ruler": "RULER's task families",
    "conversation": "Several questions about one text",
    "long": "A long text of the model's own",
}


def as_html(summary: Summary, conditions: Mapping[str, object]) -> str:
    """One page, the quality-against-bytes frontier first."""
    parts = list(dict.fromkeys(row.part for row in summary.rows))
    told = " · ".join(f"{name} {value}" for name, value in conditions.items())
    body = [
        "<h1>What compression costs</h1>",
        f"<p>{html.escape(told)}</p>",
        "<p>rows and bytes are shares of the dense cache's, everything that is shipped counted; "
        "of fp16 are bytes over a dense float16 cache's, uncoded rows counted as float16; "
        "KL is KL(full‖compact) in nats, as served unless it says otherwise; scores are the share "
        "of the answers found.</p>",
    ]
    if summary.left_out:
        body.append(f"<p>{summary.left_out} cases are longer than the model's context.</p>")
    for part in parts:
        body += [f"<h2>{_TITLES[part]}</h2>", *_pictures(part, summary), *_tables(part, summary)]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>headwise eval</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def as_document(summary: Summary, conditions: Mapping[str, object]) -> dict[str, object]:
    """The same as JSON values."""
    return {"conditions": dict(conditions), **dataclasses.asdict(summary)}


def _pictures(part: str, summary: Summary) -> list[str]:
    if part == "forced":
        groups = dict.fromkeys(row.group for row in summary.of(part))
        return [plots.frontier(_of_group(summary, part, group)) for group in groups]
    if part == "needles":
        return [plots.needle_grids(summary.grids)]
    return [plots.courses(summary.courses)] if part == "long" else []


def _tables(part: str, summary: Summary) -> list[str]:
    groups = dict.fromkeys(row.group for row in summary.of(part))
    return [_table(group, _of_group(summary, part, group)) for group in groups]


def _of_group(summary: Summary, part: str, group: str) -> list[Row]:
    return [row for row in summary.of(part) if row.group == group]


def _table(group: str, rows: Sequence[Row]) -> str:
    columns = _COLUMNS[rows[0].part] | _COSTS
    heads = "".join(f"<th>{title}</th>" for title in ("setting", *columns.values()))
    lines = [
        f"<tr><td>{html.escape(row.setting)}</td>"
        + "".join(f"<td>{_shown(what, row.values[what])}</td>" for what in columns)
        + "</tr>"
        for row in rows
    ]
    cases = f"{rows[0].cases} cases" if rows[0].cases > 1 else "1 case"
    title = f"<h3>{html.escape(group)} ({cases})</h3>"
    return f"{title}<table><tr>{heads}</tr>{''.join(lines)}</table>"


def _shown(what: str, value: float) -> str:
    if what == "kept_bytes":
        return f"{value / 2**20:.2f}"
    if what == "perplexity" or what.endswith("seconds"):
        return f"{value:.2f}"
    return f"{value:.4f}" if "kl" in what else f"{value:.3f}"
