"""The metrics of both processes, in seconds and bytes, with bounded labels."""

from __future__ import annotations

import re
import threading

from prometheus_client import Counter, Gauge, Histogram

# from a decode step on a small CPU model (.03 s) to a long prefill there (60 s)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
_MASS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0)

MODEL = Gauge(
    "headwise_model_info",
    "What the process serves; always 1",
    ["model", "dtype", "device", "version"],
)
SERVING = Gauge("headwise_serving", "1 while the health service answers SERVING")

REQUESTS = Counter("headwise_requests", "Calls ended, by method and status", ["method", "code"])
FAILURES = Counter("headwise_failures", "Calls that failed, by reason", ["method", "reason"])
PASSED_ON = Counter(
    "headwise_calls_passed_on", "Calls that another replica was asked to answer", ["method"]
)
RUNNING = Gauge("headwise_running_requests", "Calls being served", ["method"])

PREFILL_COMPUTING = Gauge("headwise_prefill_computing", "Prompts being computed right now")
PREFILL_QUEUED = Gauge("headwise_prefill_queued", "Prompts waiting for their turn")
PREFILL_UNREAD_BYTES = Gauge(
    "headwise_prefill_unread_bytes", "Bytes of computed caches that wait for their readers"
)
PROMPT_TOKENS = Counter("headwise_prompt_tokens", "Prompt tokens cached by prefill")

PREFILLS_SHARED = Counter(
    "headwise_prefills_shared", "Requests that joined the computation of an equal one"
)
PREFILLS_REUSED = Counter(
    "headwise_prefills_reused", "Stored caches found in a store instead of being computed"
)
LEASES = Gauge("headwise_leases", "Leases of kept caches that are running")
LEASES_ENDED = Counter("headwise_leases_ended", "Leases that are over, by reason", ["reason"])

# admission and receive are decode's, the others prefill's; a step has its own, finer histogram
STAGE_SECONDS = Histogram(
    "headwise_stage_seconds",
    "Time by stage of a request: admission, queue, prefill, profile, compact, ship, receive",
    ["stage"],
    buckets=_SECONDS,
)
TIME_TO_FIRST_TOKEN = Histogram(
    "headwise_time_to_first_token_seconds",
    "From the request's arrival to its first token",
    buckets=_SECONDS,
)
TIME_PER_OUTPUT_TOKEN = Histogram(
    "headwise_time_per_output_token_seconds",
    "Between two tokens of one answer",
    buckets=_STEP_SECONDS,
)
GENERATED_TOKENS = Counter("headwise_generated_tokens", "Tokens generated")
BATCH_SEQUENCES = Histogram(
    "headwise_step_sequences", "Sequences in a decode step", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)

STEP_SECONDS = Histogram(
    "headwise_step_seconds", "Forward pass of a decode step", buckets=_STEP_SECONDS
)
CAPTURES_FAILED = Counter(
    "headwise_cuda_graph_captures_failed",
    "CUDA graphs that could not be captured, by codec",
    ["codec"],
)
QUEUED = Gauge("headwise_queued_requests", "Generations that wait for room")
SESSIONS = Gauge("headwise_sessions", "Sessions kept, busy ones among them")
SESSIONS_GONE = Counter("headwise_sessions_gone", "Sessions that ended, by reason", ["reason"])
CONTEXTS = Gauge("headwise_contexts", "Stored caches held in the pool")
CONTEXTS_SHARED = Counter(
    "headwise_contexts_shared", "Generations that began on a stored cache the pool had already"
)
CONTEXTS_GONE = Counter(
    "headwise_contexts_gone", "Stored caches that left the pool, by reason", ["reason"]
)
PREEMPTIONS = Counter("headwise_preemptions", "Sequences that had to make room for older ones")
PREEMPTED = Gauge("headwise_preempted_sequences", "Sequences that wait in host memory")
CLAIMS_WAITING = Counter("headwise_claims_waiting", "Times an arriving cache was held up for room")

WIRE_BYTES = Counter("headwise_wire_bytes", "Bytes of cache messages", ["direction"])
WIRE_SECONDS = Counter(
    "headwise_wire_seconds",
    "From the first message of a cache to its last: when headwise_wire_bytes_total moved",
    ["direction"],
)
WIRE_DENSE_EQUIVALENT_BYTES = Counter(
    "headwise_wire_dense_equivalent_bytes",
    "Bytes the received caches would have, were they dense (sliding layers: their window)",
)
TRANSFERS = Counter(
    "headwise_transfers", "Caches asked of prefill, by the status it ended with", ["outcome"]
)
PREFILL_REACHABLE = Gauge(
    "headwise_prefill_reachable",
    "1 if the last call to prefill was answered, 0 if it was unavailable",
    ["target"],
)

DENSE_EQUIVALENT_BYTES = Gauge(
    "headwise_kv_dense_equivalent_bytes",
    "Bytes dense caches of the held tokens would occupy (sliding layers: their window)",
)
RESIDENT_BYTES = Gauge(
    "headwise_kv_resident_bytes", "Bytes really resident, metadata and slack included", ["tier"]
)
CAPACITY_BYTES = Gauge("headwise_kv_capacity_bytes", "Bytes that may become resident", ["tier"])
SEQUENCES = Gauge("headwise_sequences", "Sequences that hold or reserve pages")
POOL_ROWS = Gauge("headwise_pool_rows", "Rows held in the page pool")
POOL_FRAGMENTATION = Gauge(
    "headwise_pool_fragmentation_ratio", "Share of the rows of used pages that hold nothing"
)
POOL_PAGES = Gauge("headwise_pool_pages", "Pages of the pool", ["state"])
HEADS_RECEIVED = Counter("headwise_heads_received", "KV heads received, by class", ["head_class"])
ROWS_RECEIVED = Counter(
    "headwise_rows_received", "Rows received, by layer and head class", ["layer", "head_class"]
)
DENSE_ROWS_RECEIVED = Counter(
    "headwise_dense_rows_received",
    "Rows the received heads would have, were they dense (sliding layers: their window)",
    ["layer", "head_class"],
)
RECOVERED_MASS = Histogram(
    "headwise_recovered_mass_ratio",
    "Share of attention mass the kept rows cover, mean over a cache's heads, where measured",
    buckets=_MASS,
)


# of what is shared: prefill_queue, unread_bytes, leases, decode_queue, sequences, sessions, pool
SHARES_YIELDED = Counter(
    "headwise_shares_yielded",
    "Times the tenant with most of a shared thing made room for another tenant",
    ["shared"],
)
# of the file of --tokens, by the name of the limit
TENANT_LIMITS_REACHED = Counter(
    "headwise_tenant_limits_reached", "Calls refused at a limit of their tenant", ["limit"]
)


class FailureReasons:
    """Bounds the label `reason` of `FAILURES`, because a peer's error may name any reason.

    The first `max_reasons` reasons in upper case with underscores are kept; all others are `OTHER`.
    """

    def __init__(self, max_reasons: int = 64) -> None:
        self._max_reasons = max_reasons
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def bounded(self, reason: str) -> str:
        with self._lock:
            if reason in self._known:
                return reason
            if len(self._known) < self._max_reasons and re.fullmatch(
                "[A-Z][A-Z0-9_]{1,62}", reason
            ):
                self._known.add(reason)
                return reason
        return "OTHER"


FAILURE_REASONS = FailureReasons()
