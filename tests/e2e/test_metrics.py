"""Each metric equals a figure that was counted outside the services, under load."""

from __future__ import annotations

import collections
import contextlib
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from deploy.observe.__main__ import declared_metrics
from headwise import Client, HeadwiseError, InvalidRequest, Policy
from headwise.results import Result
from headwise.version import __version__
from services.runtime.process.metrics import FailureReasons
from tests.conftest import Pair, running_pair
from tests.observe import scrape, wait_until
from tests.parts import require_program

pytestmark = pytest.mark.processes

_PROMPTS = [f"Sentence {n} says that a cache of a cache is a cache. " * (4 + n) for n in range(6)]
_POLICIES = [Policy("full"), Policy("coverage", {"recovery": 0.6}), Policy("fastgen")]
_ROW_BYTES = 2 * 16 * 4
_HEADS = 4
_STAGES = ("prefill", "profile", "compact", "ship", "receive")
_POOL_BYTES = 4 << 20
_REFUSED = 3


class Load(NamedTuple):
    """Requests to a fresh pair of services, the answers, and the metrics afterwards."""

    pair: Pair
    results: list[Result]
    prefill: dict[str, float]
    decode: dict[str, float]


@pytest.fixture(scope="module")
def load(tiny_model: Path) -> Iterator[Load]:
    """Answers at once, the first kept as a session, and some requests that are refused."""
    pool = ("--pool-bytes", str(_POOL_BYTES), "--swap-bytes", "4096")
    with running_pair(str(tiny_model), decode_arguments=pool) as pair:
        with Client(pair[1].target) as client, ThreadPoolExecutor(3) as threads:
            answers = [threads.submit(_ask, client, n) for n in range(len(_PROMPTS))]
            results = [answer.result() for answer in answers]
            for _ in range(_REFUSED):
                with pytest.raises(InvalidRequest):
                    client.generate([], max_tokens=1).text()
        wait_until(lambda: scrape(pair[1].metrics_url)["headwise_sequences"] == 0, 5, "the end")
        yield Load(pair, results, *(scrape(service.metrics_url) for service in pair))


def _ask(client: Client, n: int) -> Result:
    return client.generate(
        _PROMPTS[n],
        policy=_POLICIES[n % len(_POLICIES)],
        max_tokens=5 + n,
        ignore_eos=True,
        report_heads=True,
        session_ttl_seconds=0 if n else 600,
    ).result


def _cached(result: Result) -> int:
    return result.usage.prompt_tokens - 1


def test_calls_and_their_ends(load: Load) -> None:
    count, refused = len(load.results), _REFUSED
    assert load.decode["headwise_requests_total{code=OK,method=Generate}"] == count
    assert load.decode["headwise_requests_total{code=INVALID_ARGUMENT,method=Generate}"] == refused
    assert load.decode["headwise_failures_total{method=Generate,reason=EMPTY_PROMPT}"] == refused
    assert load.prefill["headwise_requests_total{code=OK,method=Prefill}"] == count
    assert load.decode["headwise_running_requests{method=Generate}"] == 0
    assert load.decode["headwise_transfers_total{outcome=OK}"] == count
    target = load.pair[0].target
    assert load.decode[f"headwise_prefill_reachable{{target={target}}}"] == 1
    assert load.decode["headwise_serving"] == load.prefill["headwise_serving"] == 1


def test_tokens_and_times(load: Load) -> None:
    made = sum(r.usage.completion_tokens for r in load.results)
    assert made == sum(5 + n for n in range(len(_PROMPTS)))
    assert load.decode["headwise_generated_tokens_total"] == made
    assert load.prefill["headwise_prompt_tokens_total"] == sum(map(_cached, load.results))
    first = "headwise_time_to_first_token_seconds"
    assert load.decode[f"{first}_count"] == len(load.results)
    told = sum(r.timings.first_token_seconds for r in load.results)
    assert load.decode[f"{first}_sum"] == pytest.approx(told)
    between = "headwise_time_per_output_token_seconds"
    assert load.decode[f"{between}_count"] == made - len(load.results)
    told = sum(r.timings.decode_seconds for r in load.results)
    assert load.decode[f"{between}_sum"] == pytest.approx(told)


def test_stages(load: Load) -> None:
    for stage in _STAGES:
        samples = load.decode if stage == "receive" else load.prefill
        told = sum(getattr(r.timings, f"{stage}_seconds") for r in load.results)
        assert samples[f"headwise_stage_seconds_count{{stage={stage}}}"] == len(load.results)
        assert samples[f"headwise_stage_seconds_sum{{stage={stage}}}"] == pytest.approx(told)
    waited = (
        load.prefill["headwise_stage_seconds_sum{stage=queue}"]
        + load.decode["headwise_stage_seconds_sum{stage=admission}"]
    )
    assert waited == pytest.approx(sum(r.timings.queue_seconds for r in load.results))


def test_steps(load: Load) -> None:
    steps, sequences = (
        load.decode[f"headwise_step_{n}"] for n in ("seconds_count", "sequences_sum")
    )
    assert load.decode["headwise_step_sequences_count"] == steps
    # a sequence is part of one step for each token it is given
    assert sequences == load.decode["headwise_generated_tokens_total"]
    assert load.decode["headwise_step_seconds_sum"] > 0


def test_bytes_on_the_wire_and_the_seconds_they_took(load: Load) -> None:
    told = sum(r.prompt_memory.wire_bytes for r in load.results)
    assert load.prefill["headwise_wire_bytes_total{direction=sent}"] == told
    assert load.decode["headwise_wire_bytes_total{direction=received}"] == told
    dense = sum(_cached(r) * _HEADS * _ROW_BYTES for r in load.results)
    assert load.decode["headwise_wire_dense_equivalent_bytes_total"] == dense
    receiving = sum(r.timings.receive_seconds for r in load.results)
    assert 0 < load.decode["headwise_wire_seconds_total{direction=received}"] <= receiving
    assert load.prefill["headwise_wire_seconds_total{direction=sent}"] > 0


def test_rows_by_layer_and_head_class(load: Load) -> None:
    rows, dense, heads = (collections.Counter[str]() for _ in range(3))
    for result in load.results:
        for head in result.heads:
            labels = f"{{head_class={head.head_class},layer={head.layer:02d}}}"
            rows[f"headwise_rows_received_total{labels}"] += head.rows
            dense[f"headwise_dense_rows_received_total{labels}"] += _cached(result)
            heads[f"headwise_heads_received_total{{head_class={head.head_class}}}"] += 1
    for counted in (rows, dense, heads):
        assert {name: load.decode[name] for name in counted} == dict(counted)
    assert rows.total() < dense.total()
    told = sum(r.prompt_memory.attention_coverage for r in load.results)
    assert load.decode["headwise_recovered_mass_ratio_sum"] == pytest.approx(told)


def test_resident_gauges_count_the_kept_session(load: Load) -> None:
    """Only the kept session is: its answer's last token has not been fed yet."""
    kept = load.results[0]
    assert load.decode["headwise_sessions"] == 1
    tokens = _cached(kept) + kept.usage.completion_tokens
    assert load.decode["headwise_kv_dense_equivalent_bytes"] == tokens * _HEADS * _ROW_BYTES
    assert load.decode["headwise_pool_rows"] == tokens * _HEADS
    resident = load.decode["headwise_kv_resident_bytes{tier=pool}"]
    assert resident == kept.final_memory.resident_bytes
    pages = {
        state: load.decode[f"headwise_pool_pages{{state={state}}}"]
        for state in ("used", "reserved", "free")
    }
    # full heads have no marks
    page_rows = 16
    assert pages["used"] == resident / (page_rows * _ROW_BYTES) == _HEADS * -(-tokens // page_rows)
    slack = 1 - tokens / (page_rows * -(-tokens // page_rows))
    assert load.decode["headwise_pool_fragmentation_ratio"] == pytest.approx(slack)
    capacity = load.decode["headwise_kv_capacity_bytes{tier=pool}"]
    assert 0.99 * _POOL_BYTES < capacity <= _POOL_BYTES
    assert load.decode["headwise_kv_capacity_bytes{tier=host}"] == 4096
    assert load.decode["headwise_kv_resident_bytes{tier=host}"] == 0


def test_what_is_served_and_what_is_missing(load: Load) -> None:
    for samples in (load.prefill, load.decode):
        [identity] = (name for name in samples if name.startswith("headwise_model_info"))
        assert f"dtype=float32,model=tiny-model0,version={__version__}" in identity
    with Client(load.pair[1].target) as client, contextlib.suppress(HeadwiseError):
        client.sessions.release(load.results[0].session_id)
    after = scrape(load.pair[1].metrics_url)
    assert after["headwise_sessions"] == after["headwise_pool_rows"] == 0
    assert after["headwise_sessions_gone_total{reason=SESSION_RELEASED}"] == 1


def test_promtool_finds_nothing_to_say(load: Load) -> None:
    promtool = require_program("promtool", "apt-get install prometheus")
    for service in load.pair:
        with urllib.request.urlopen(service.metrics_url, timeout=10) as answer:
            text = answer.read()
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
        assert (done.returncode, done.stderr.decode()) == (0, "")


def test_every_metric_is_held_against_something() -> None:
    folder = Path(__file__).parents[1]
    named = "".join(path.read_text() for path in folder.rglob("test_*.py"))
    ours = {name for name in declared_metrics() if name.startswith("headwise_")}
    assert not {name for name in ours if name not in named}


def test_reasons_of_a_hostile_peer_do_not_become_series() -> None:
    reasons = FailureReasons(max_reasons=3)
    assert reasons.bounded("QUEUE_FULL") == "QUEUE_FULL"
    assert reasons.bounded("x" * 10_000) == reasons.bounded("lower") == "OTHER"
    named = {reasons.bounded(f"MADE_UP_{n}") for n in range(1000)}
    assert named == {"MADE_UP_0", "MADE_UP_1", "OTHER"}
    assert reasons.bounded("QUEUE_FULL") == "QUEUE_FULL"
