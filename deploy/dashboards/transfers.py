"""Transfers and store: caches between prefill, decode and where they rest."""

from __future__ import annotations

from deploy.dashboards.panels import Dashboard, Kind, Panel, Target, rate, select, total

_BYTES = total(rate("headwise_wire_bytes_total"), "direction")
_SECONDS = total(rate("headwise_wire_seconds_total"), "direction")
_RECEIVED = total(rate("headwise_wire_bytes_total", 'direction="received"'))
_ARRIVED = total(rate("headwise_transfers_total", 'outcome="OK"'))
_HITS = total(rate("headwise_store_hits_total"), "tier")
_MISSES = total(rate("headwise_store_misses_total"), "tier")

TRANSFERS_AND_STORE = Dashboard(
    "transfers-and-store",
    "Headwise / Transfers and store",
    "Caches on their way from prefill to decode, held under leases, and at rest.",
    (
        Panel(
            "Transfers by outcome",
            "Caches that decode asked for, by the status with which the call ended.",
            (Target(total(rate("headwise_transfers_total"), "outcome"), "{{outcome}}"),),
            unit="ops",
            stacked=True,
        ),
        Panel(
            "Failed transfers",
            "Share of transfers that ended otherwise than well, refused for want of room, or left "
            "by their client.",
            (Target(select("instance:headwise_transfers_failed:ratio_rate5m"), "{{instance}}"),),
            unit="percentunit",
        ),
        Panel(
            "Bytes on the wire",
            "Bytes of cache messages a second; sent and received differ by what is on its way or "
            "was lost.",
            (Target(_BYTES, "{{direction}}"),),
            unit="Bps",
        ),
        Panel(
            "Speed of a transfer",
            "Bytes through the seconds in which they moved, from a cache's first message to its "
            "last. Layers leave as they are computed, so this is rarely the link's own speed.",
            (Target(f"{_BYTES} / ({_SECONDS} > 0)", "{{direction}}"),),
            unit="Bps",
        ),
        Panel(
            "Mean size of a cache",
            "Bytes received for a cache that arrived whole.",
            (Target(f"{_RECEIVED} / ({_ARRIVED} > 0)", "received"),),
            unit="bytes",
        ),
        Panel(
            "Prefill reachable",
            "1 if the last call of the decode reached prefill.",
            (
                Target(
                    f"min by (instance, target) ({select('headwise_prefill_reachable')})",
                    "{{instance}} → {{target}}",
                ),
            ),
            kind=Kind.STAT,
        ),
        Panel(
            "Arrivals held up",
            "Times a second that an arriving cache waited for pages; flow control holds prefill up "
            "meanwhile.",
            (Target(total(rate("headwise_claims_waiting_total"), "instance"), "{{instance}}"),),
            unit="ops",
        ),
        Panel(
            "Store lookups",
            "By tier; a miss says why.",
            (
                Target(_HITS, "{{tier}}: hit"),
                Target(
                    total(rate("headwise_store_misses_total"), "tier, reason"),
                    "{{tier}}: {{reason}}",
                ),
            ),
            unit="ops",
            stacked=True,
        ),
        Panel(
            "Store hits",
            "Share of lookups that found a cache, by tier.",
            # a tier that never missed has no series of misses
            (Target(f"{_HITS} / ({_HITS} + ({_MISSES} or 0 * {_HITS}) > 0)", "{{tier}}"),),
            unit="percentunit",
            highest=1,
        ),
        Panel(
            "Store writes",
            "Caches put, by tier and outcome, and those that were to be written later and found no "
            "room in the queue.",
            (
                Target(
                    total(rate("headwise_store_puts_total"), "tier, outcome"),
                    "{{tier}}: {{outcome}}",
                ),
                Target(
                    total(rate("headwise_store_dropped_writes_total"), "tier"), "{{tier}}: dropped"
                ),
            ),
            unit="ops",
        ),
        Panel(
            "Store bytes",
            "Bytes of caches read and written, by tier.",
            (
                Target(
                    total(rate("headwise_store_bytes_total"), "tier, direction"),
                    "{{tier}}: {{direction}}",
                ),
            ),
            unit="Bps",
        ),
        Panel(
            "Store time",
            "Seconds a second that calls of a tier take: 1 is one thread that never rests.",
            (
                Target(
                    total(rate("headwise_store_seconds_total"), "tier, direction"),
                    "{{tier}}: {{direction}}",
                ),
            ),
        ),
        Panel(
            "Leases",
            "Leases of kept caches that are running, and those that ended, a second, by reason.",
            (
                Target(total(select("headwise_leases")), "running"),
                Target(total(rate("headwise_leases_ended_total"), "reason"), "{{reason}} a second"),
            ),
        ),
        Panel(
            "Computations spared",
            "A second: prompts found in a store, requests that joined an equal one's computation, "
            "and generations that began on a stored cache which the pool had already.",
            (
                Target(total(rate("headwise_prefills_reused_total")), "found in a store"),
                Target(total(rate("headwise_prefills_shared_total")), "computed once for several"),
                Target(total(rate("headwise_contexts_shared_total")), "in decode's pool already"),
            ),
            unit="ops",
        ),
        Panel(
            "Stored caches in the pool",
            "Those that decode holds for the questions about them, and those that left, a second, "
            "by reason.",
            (
                Target(total(select("headwise_contexts")), "held"),
                Target(
                    total(rate("headwise_contexts_gone_total"), "reason"), "{{reason}} a second"
                ),
            ),
        ),
    ),
)
