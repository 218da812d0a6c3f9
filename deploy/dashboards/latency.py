"""Latency: where a request's time goes, and who waits."""

from __future__ import annotations

from deploy.dashboards.panels import Dashboard, Panel, Target, mean, quantiles, rate, select, total

_STAGE_BUCKETS = total(rate("headwise_stage_seconds_bucket"), "stage, le")
_WAITING = 'stage=~"admission|queue"'

LATENCY = Dashboard(
    "latency",
    "Headwise / Latency",
    "Time to the first token by stage, time a token, and queues.",
    (
        Panel(
            "Time to first token",
            "From a request's arrival at decode to its first token.",
            quantiles("headwise_time_to_first_token_seconds", 0.5, 0.95, 0.99),
            unit="s",
        ),
        Panel(
            "Mean time by stage",
            "Stages of a request until its first token. receive runs beside prefill's stages: it "
            "begins with the first layer's bytes.",
            (Target(mean("headwise_stage_seconds", "stage"), "{{stage}}"),),
            unit="s",
            stacked=True,
        ),
        Panel(
            "95th percentile by stage",
            "One request in twenty spends longer in the stage.",
            (Target(f"histogram_quantile(0.95, {_STAGE_BUCKETS})", "{{stage}}"),),
            unit="s",
        ),
        Panel(
            "Time per output token",
            "Between two tokens of one answer.",
            quantiles("headwise_time_per_output_token_seconds", 0.5, 0.95, 0.99),
            unit="s",
        ),
        Panel(
            "Decode step",
            "Forward pass of a step for the whole batch.",
            quantiles("headwise_step_seconds", 0.5, 0.95),
            unit="s",
        ),
        Panel(
            "Sequences in a step",
            "Mean size of the running batch.",
            (Target(mean("headwise_step_sequences", "instance"), "{{instance}}"),),
        ),
        Panel(
            "Who waits",
            "Generations that wait for room in decode, and prompts that wait for their turn or "
            "compute in prefill.",
            (
                Target(total(select("headwise_queued_requests")), "for room in decode"),
                Target(total(select("headwise_prefill_queued")), "for a turn in prefill"),
                Target(total(select("headwise_prefill_computing")), "computing in prefill"),
            ),
        ),
        Panel(
            "Mean time in line",
            "admission: for room in decode. queue: for a turn in prefill.",
            (Target(mean("headwise_stage_seconds", "stage", _WAITING), "{{stage}}"),),
            unit="s",
        ),
        Panel(
            "Tokens",
            "Tokens generated, and prompt tokens cached, a second.",
            (
                Target(total(rate("headwise_generated_tokens_total")), "generated"),
                Target(total(rate("headwise_prompt_tokens_total")), "prompt"),
            ),
            unit="ops",
        ),
        Panel(
            "Calls being served",
            "Calls that run now, by method.",
            (Target(total(select("headwise_running_requests"), "method"), "{{method}}"),),
            stacked=True,
        ),
    ),
)
