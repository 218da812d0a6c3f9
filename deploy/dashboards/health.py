"""The health dashboard: availability, failures, evictions and preemptions."""

from __future__ import annotations

from deploy.dashboards.panels import Dashboard, Kind, Panel, Target, rate, select, total

# metrics of every process, narrowed to ours
_OURS = f"and on (namespace, instance) {select('headwise_serving')}"

HEALTH = Dashboard(
    "health",
    "Headwise / Health",
    "Processes, failures by reason, and who had to make room.",
    (
        Panel(
            "Serving",
            "1 while the health service says SERVING.",
            (Target(f"min by (instance) ({select('headwise_serving')})", "{{instance}}"),),
            kind=Kind.STAT,
            width=8,
            height=5,
        ),
        Panel(
            "Firing alerts",
            "Headwise's own; docs/runbook.md has a paragraph on each.",
            (
                Target(
                    'count(ALERTS{alertname=~"Headwise.*", alertstate="firing", '
                    'namespace=~"$namespace"}) or vector(0)',
                    "firing",
                ),
            ),
            kind=Kind.STAT,
            width=4,
            height=5,
        ),
        Panel(
            "What runs",
            "Model, dtype, device and version of each process; all of a fleet should agree.",
            (
                Target(
                    "count by (instance, model, dtype, device, version) "
                    f"({select('headwise_model_info')})"
                ),
            ),
            kind=Kind.TABLE,
            width=12,
            height=5,
        ),
        Panel(
            "Calls by status",
            "Calls that ended, a second.",
            (
                Target(
                    total(rate("headwise_requests_total"), "method, code"), "{{method}} {{code}}"
                ),
            ),
            unit="ops",
            stacked=True,
        ),
        Panel(
            "Failures by reason",
            "Calls that failed, a second; the reason is the one that callers see.",
            (Target(total(rate("headwise_failures_total"), "reason"), "{{reason}}"),),
            unit="ops",
            stacked=True,
        ),
        Panel(
            "Pool use",
            "Share of pages in use or promised.",
            (Target(select("instance:headwise_pool_used:ratio"), "{{instance}}"),),
            unit="percentunit",
            highest=1,
        ),
        Panel(
            "Preemptions",
            "Sequences that wait in host memory, and how many a second had to go there.",
            (
                Target(total(select("headwise_preempted_sequences")), "waiting"),
                Target(total(rate("headwise_preemptions_total")), "a second"),
            ),
        ),
        Panel(
            "Sessions and sequences",
            "Sequences that run or are being filled, and sessions that are kept.",
            (
                Target(total(select("headwise_sequences")), "sequences"),
                Target(total(select("headwise_sessions")), "sessions"),
            ),
        ),
        Panel(
            "Sessions that ended",
            "A second, by reason: released by their owner, expired, or evicted for want of room.",
            (Target(total(rate("headwise_sessions_gone_total"), "reason"), "{{reason}}"),),
            unit="ops",
            stacked=True,
        ),
        Panel(
            "Memory of the processes",
            "Resident set: weights, pool and everything else in host memory.",
            (Target(f"{select('process_resident_memory_bytes')} {_OURS}", "{{instance}}"),),
            unit="bytes",
        ),
        Panel(
            "CPU of the processes",
            "Cores in use.",
            (Target(f"{rate('process_cpu_seconds_total')} {_OURS}", "{{instance}}"),),
        ),
        Panel(
            "Open files of the processes",
            "Descriptors, sockets among them.",
            (Target(f"{select('process_open_fds')} {_OURS}", "{{instance}}"),),
        ),
    ),
)
