"""Memory savings: what the services exist for."""

from __future__ import annotations

from deploy.dashboards.panels import (
    Dashboard,
    Kind,
    Panel,
    Target,
    mean,
    quantiles,
    rate,
    select,
    total,
)

_DENSE = total(select("headwise_kv_dense_equivalent_bytes"))
_RESIDENT = total(select("headwise_kv_resident_bytes", 'tier="pool"'))
_CAPACITY = total(select("headwise_kv_capacity_bytes", 'tier="pool"'))
_HOLDERS = " + ".join(
    total(select(f"headwise_{holder}")) for holder in ("sequences", "sessions", "contexts")
)
_WIRE = total(rate("headwise_wire_bytes_total", 'direction="received"'))
_WIRE_DENSE = total(rate("headwise_wire_dense_equivalent_bytes_total"))
_CLASS = 'head_class=~"$head_class"'


def _rows_kept(by: str) -> str:
    kept, dense = (
        total(rate(f"headwise_{name}_total", _CLASS), by)
        for name in ("rows_received", "dense_rows_received")
    )
    return f"{kept} / ({dense} > 0)"


MEMORY_SAVINGS = Dashboard(
    "memory-savings",
    "Headwise / Memory savings",
    "Measured bytes: pages with metadata and slack, and serialized messages, against dense caches.",
    (
        Panel(
            "Saved on the device",
            "Share of a dense cache's bytes that the page pool does not hold, slack and metadata "
            "counted against us.",
            (Target(f"1 - {_RESIDENT} / ({_DENSE} > 0)", "saved"),),
            unit="percentunit",
            kind=Kind.STAT,
            width=6,
            height=4,
        ),
        Panel(
            "Saved on the wire",
            "Share of a dense cache's bytes that did not cross the network.",
            (Target(f"1 - {_WIRE} / ({_WIRE_DENSE} > 0)", "saved"),),
            unit="percentunit",
            kind=Kind.STAT,
            width=6,
            height=4,
        ),
        Panel(
            "Sequences for one",
            "How many sequences of the present kind fit where one fitted dense.",
            (Target(f"{_DENSE} / ({_RESIDENT} > 0)", "times"),),
            unit="suffix:×",
            kind=Kind.STAT,
            width=6,
            height=4,
        ),
        Panel(
            "Attention covered",
            "Mean share of the prompts' attention that the kept rows cover: the price of what is "
            "saved.",
            (Target(mean("headwise_recovered_mass_ratio"), "covered"),),
            unit="percentunit",
            kind=Kind.STAT,
            width=6,
            height=4,
        ),
        Panel(
            "Dense-equivalent against resident",
            "Bytes that dense caches of the held tokens would take, bytes really in use, and the "
            "pool's size.",
            (
                Target(_DENSE, "dense equivalent"),
                Target(_RESIDENT, "resident"),
                Target(_CAPACITY, "pool"),
            ),
            unit="bytes",
        ),
        Panel(
            "Resident by tier",
            "Where caches rest: the page pool, host memory of preempted sequences, and stores.",
            (Target(total(select("headwise_kv_resident_bytes"), "tier"), "{{tier}}"),),
            unit="bytes",
            stacked=True,
        ),
        Panel(
            "Sequences that fit",
            "The pool's bytes through the bytes of a mean holder, a running sequence, a kept "
            "session or a stored cache, as it is and as it would be dense. A busy session counts "
            "twice.",
            (
                Target(f"{_CAPACITY} * ({_HOLDERS}) / ({_RESIDENT} > 0)", "compact"),
                Target(f"{_CAPACITY} * ({_HOLDERS}) / ({_DENSE} > 0)", "dense"),
            ),
        ),
        Panel(
            "Bytes on the wire",
            "What arrived a second, and what would have, were the caches dense.",
            (Target(_WIRE_DENSE, "dense equivalent"), Target(_WIRE, "received")),
            unit="Bps",
        ),
        Panel(
            "Rows kept by layer",
            "Share of a dense cache's rows that the heads of each layer kept; narrow it with the "
            "head class above.",
            (Target(_rows_kept("layer"), "layer {{layer}}"),),
            unit="percentunit",
            kind=Kind.HEAT_MAP,
            highest=1,
        ),
        Panel(
            "Rows kept by head class",
            "Share of a dense cache's rows that heads of each class kept.",
            (Target(_rows_kept("head_class"), "{{head_class}}"),),
            unit="percentunit",
            kind=Kind.HEAT_MAP,
            highest=1,
        ),
        Panel(
            "Heads by class",
            "KV heads that arrived a second, by the class that their profile put them in.",
            (Target(total(rate("headwise_heads_received_total"), "head_class"), "{{head_class}}"),),
            unit="ops",
            stacked=True,
        ),
        Panel(
            "Attention coverage",
            "Share of attention that a cache's rows cover, mean over its heads. p10: nine caches "
            "of ten cover more.",
            (
                *quantiles("headwise_recovered_mass_ratio", 0.1, 0.5),
                Target("headwise:recovered_mass_target:ratio", "target"),
            ),
            unit="percentunit",
            highest=1,
        ),
        Panel(
            "Pages by state",
            "Pages in use, promised to who runs or arrives, and free.",
            (Target(total(select("headwise_pool_pages"), "state"), "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Slack of used pages",
            "Share of the rows of used pages that hold nothing; smaller pages (--page-rows) have "
            "less.",
            (Target(select("headwise_pool_fragmentation_ratio"), "{{instance}}"),),
            unit="percentunit",
        ),
    ),
)
