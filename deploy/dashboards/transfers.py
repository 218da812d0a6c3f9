"""Transfers and store: caches between prefill, decode and where they rest."""

from __future__ import annotations

from deploy.dashboards.panels import Dashboard, Kind, Panel, Target, rate, select, total

_BYTES = total(rate("headwise_wire_bytes_total"), "direction")
_SECONDS = total(rate("headwise_wire_seconds_total"), "direction")
_RECEIVED = total(rate("headwise_wire_bytes_total", 'direction="received"'))
_ARRIVED = total(rate("headwise_transfers_total", 'outcome="OK"'))
_LOOKUPS = total(rate("headwise_store_requests_total"), "tier")
_HITS = total(rate("headwise_store_requests_total", 'outcome="hit"'), "tier")

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
            "By tier and outcome; a miss says why.",
            (
                Target(
                    total(rate("headwise_store_requests_total"), "tier, outcome"),
                    "{{tier}}: {{outcome}}",
                ),
            ),
            unit="ops",
            stacked=True,
        ),
        Panel(
            "Store hits",
            "Share of lookups that found a cache, by tier.",
            (Target(f"{_HITS} / ({_LOOKUPS} > 0)", "{{tier}}"),),
            unit="percentunit",
        ),
        Panel(
            "Leases",
            "Finished caches that prefill holds for who will fetch them, and those that expired "
            "unfetched, a second.",
            (
                Target(total(select("headwise_leases")), "held"),
                Target(total(rate("headwise_leases_expired_total")), "expired a second"),
            ),
        ),
    ),
)
