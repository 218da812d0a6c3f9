"""Measure the transfer of caches between two processes on loopback.

- A stored cache through FetchCache, alternating with a bare stream of messages of the same sizes.
- Time to first token with prefill and decode split, where each layer is sent while the next is
  computed. It is compared with the same prefill handed over in memory, and with an unprofiled
  prefill. The services are idle while this process computes, and the reverse.
"""

from __future__ import annotations

import argparse
import dataclasses
import operator
import statistics
import threading
import time
from collections.abc import Sequence

import grpc
import torch
from rich.table import Table

from benchmarks.byte_stream import METHOD, byte_server
from benchmarks.figures import Figure, add_options, report
from headwise import Client
from headwise.channel import channel_options
from headwise.v1 import (
    cache_pb2,
    decode_pb2,
    prefill_pb2,
    prefill_pb2_grpc,
    store_pb2,
    store_pb2_grpc,
)
from kvstore.calibration import Calibration
from kvstore.policies import Policy, parse_policy
from kvstore.policies.full import Full
from kvstore.pool import PagePool, pages_bound
from services.decode.engine.step import run_step
from services.demo.processes import Service, running_service
from services.prefill.calibration.calibrations import Calibrations
from services.prefill.calibration.texts import all_topics
from services.prefill.compute.prefiller import Prefiller
from services.runtime.model.served_model import ServedModel, default_cache_dir, load_model

# policy and codec
_DENSE, _COMPACT, _CODED = ("full", "model"), ("coverage", "model"), ("coverage", "int8")
# of the time to first token: the default, which ships after the last layer, and one that ships each
_DEFAULT, _OTHER = "balanced", "coverage"
_PAGE_ROWS = 16
_WARM_TOKENS = 256
_TIMEOUT_SECONDS = 600.0


@dataclasses.dataclass(frozen=True, slots=True)
class Shipping:
    """One held cache: bytes of its messages, and seconds a round, with the bare stream's."""

    wire_bytes: int
    fetch_seconds: list[float] = dataclasses.field(default_factory=list)
    bare_seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def efficiency(self) -> float:
        """Speed relative to the bare stream in the same round; the median."""
        return statistics.median(map(operator.truediv, self.bare_seconds, self.fetch_seconds))


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """One Prefill call as it arrived: what was exposed after the last layer began to arrive."""

    exposed_seconds: float
    report: prefill_pb2.PrefillReport
    handle: str
    wire_bytes: int
    messages: int


def prefill(target: str, tokens: Sequence[int], policy: str, codec: str) -> Stream:
    """Prefill, noting when the last layer's first frame came; the server then has it stored."""
    request = prefill_pb2.PrefillRequest(token_ids=tokens)
    request.policy.name, request.codec.keys = policy, codec
    keep = store_pb2.KeepCacheRequest(
        tokens=decode_pb2.TokenIds(ids=tokens),
        keep_for_seconds=3600,
        policy=request.policy,
        codec=request.codec,
    )
    last_layer, nbytes, messages, layer = 0.0, 0, 0, -1
    stages = prefill_pb2.PrefillReport()
    with grpc.insecure_channel(target, channel_options(retries=False)) as channel:
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        for response in stub.Prefill(request, timeout=_TIMEOUT_SECONDS):
            nbytes, messages = nbytes + response.ByteSize(), messages + 1
            if response.HasField("report"):
                stages = response.report
            if response.frame.kind == cache_pb2.FRAME_KIND_INDEX and response.frame.layer > layer:
                layer, last_layer = response.frame.layer, time.perf_counter()
        exposed = time.perf_counter() - last_layer
        caches = store_pb2_grpc.CacheServiceStub(channel)
        handle = caches.KeepCache(keep, timeout=_TIMEOUT_SECONDS).cache.handle
    return Stream(exposed, stages, handle, nbytes, messages)


def ship(prefill_target: str, bare_target: str, stream: Stream, rounds: int) -> Shipping:
    """Fetch the held cache, and bare messages of the same sizes, by turns; none is parsed."""
    request = store_pb2.FetchCacheRequest(handle=stream.handle).SerializeToString()
    options = channel_options(retries=False)
    with (
        grpc.insecure_channel(prefill_target, options) as ours,
        grpc.insecure_channel(bare_target, options) as bare,
    ):
        fetch = ours.unary_stream("/headwise.v1.CacheService/FetchCache")
        raw = bare.unary_stream(METHOD)
        sizes = [len(message) for message in fetch(request, timeout=_TIMEOUT_SECONDS)]
        shipping = Shipping(sum(sizes))
        wanted = " ".join(map(str, sizes)).encode()
        sum(map(len, raw(wanted)))
        for _ in range(rounds):
            began = time.perf_counter()
            sum(map(len, fetch(request, timeout=_TIMEOUT_SECONDS)))
            middle = time.perf_counter()
            sum(map(len, raw(wanted)))
            shipping.fetch_seconds.append(middle - began)
            shipping.bare_seconds.append(time.perf_counter() - middle)
    return shipping


def split_first_token(client: Client, tokens: Sequence[int], policy: str) -> float:
    """Seconds from the question to the first token, through both processes."""
    began = time.perf_counter()
    generation = client.generate(tokens, policy=policy, max_tokens=1, ignore_eos=True)
    next(iter(generation))
    return time.perf_counter() - began


def memory_first_token(
    served: ServedModel, tokens: Sequence[int], policy: Policy, calibration: Calibration
) -> float:
    """The same in one process: each layer goes from the policy straight into the pool."""
    bound = pages_bound(served.shapes, len(tokens) + 1, _PAGE_ROWS)
    pool = PagePool(served.shapes, pages=bound.rows, page_rows=_PAGE_ROWS, dtype=served.dtype)
    pages = pool.open(len(tokens) - 1, bound)
    began = time.perf_counter()
    Prefiller(
        served,
        tokens[:-1],
        policy,
        chunk_tokens=1024,
        emit=pages.load,
        progress=lambda done: None,
        stop=threading.Event(),
        calibration=calibration,
    ).run()
    with torch.inference_mode():
        run_step(served, [pages], [tokens[-1]]).argmax(-1)
    seconds = time.perf_counter() - began
    pages.release()
    return seconds


def first_tokens(
    served: ServedModel,
    client: Client,
    text: Sequence[int],
    tokens: int,
    rounds: int,
    name: str,
) -> dict[str, list[float]]:
    """Seconds by contestant, one entry a round; each round has a prompt of its own.

    A first round, of few tokens, is not counted.
    """
    seconds: dict[str, list[float]] = {"split": [], "memory": [], "unprofiled": []}
    policy = parse_policy(name, {})
    calibration = Calibrations(served, default_cache_dir()).needed_by(policy)
    for number in range(-1, rounds):
        length = tokens if number >= 0 else min(tokens, _WARM_TOKENS)
        prompt = text[number + 1 : number + 1 + length]
        taken = {
            "split": split_first_token(client, prompt, name),
            "memory": memory_first_token(served, prompt, policy, calibration),
            "unprofiled": memory_first_token(served, prompt, Full(), Calibration()),
        }
        if number >= 0:
            for contestant, value in taken.items():
                seconds[contestant].append(value)
    return seconds


def _ratio(seconds: dict[str, list[float]], over: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds["split"], seconds[over], strict=True))


def _first_token_ratios(seconds: dict[str, list[float]], suffix: str) -> dict[str, Figure]:
    return {
        f"ttft_ratio_split{suffix}": Figure(
            _ratio(seconds, "memory"), "ratio", "the same prefill handed over in memory", 1.10
        ),
        f"ttft_ratio_unprofiled{suffix}": Figure(
            _ratio(seconds, "unprofiled"), "ratio", "an unprofiled prefill handed over"
        ),
    }


def measure(options: argparse.Namespace) -> tuple[dict[str, Figure], list[Table]]:
    """Every size in turn; figures are of the largest."""
    served = load_model("smollm2")
    text, threads = all_topics(served), str(options.threads)
    arguments = ["--model", "smollm2", "--threads", threads]
    shipped = Table(
        "tokens", "policy", "codec", "wire MB", "seconds", "GB/s", "bare GB/s", "exposed ms"
    )
    figures: dict[str, Figure] = {}
    columns = ("tokens", "policy", "split s", "in memory s", "unprofiled s")
    first = Table(*columns, title="Time to first token")
    with (
        running_service("prefill", [*arguments, "--store-prompts"]) as prefill_service,
        running_service("decode", [*arguments, "--prefill", prefill_service.target]) as decode,
        byte_server() as bare,
        Client(decode.target) as client,
    ):
        for tokens in options.tokens:
            prompt = text[20_000 : 20_000 + tokens]
            figures |= _ship_all(prefill_service, bare, prompt, options.rounds, shipped)
            if options.prefills:
                for policy, suffix in ((_DEFAULT, ""), (_OTHER, f"_{_OTHER}")):
                    seconds = first_tokens(
                        served, client, text[60_000:], tokens, options.prefills, policy
                    )
                    least = (f"{min(values):.3f}" for values in seconds.values())
                    first.add_row(str(tokens), policy, *least)
                    figures |= _first_token_ratios(seconds, suffix)
    return figures, [shipped, first]


def _ship_all(
    service: Service, bare: str, prompt: Sequence[int], rounds: int, table: Table
) -> dict[str, Figure]:
    """Each policy's cache of one prompt, and what follows from them together."""
    streams = {made: prefill(service.target, prompt, *made) for made in (_DENSE, _COMPACT, _CODED)}
    shippings = {
        made: ship(service.target, bare, stream, rounds) for made, stream in streams.items()
    }
    for made, one in shippings.items():
        best, nbytes = min(one.fetch_seconds), one.wire_bytes
        speeds = f"{nbytes / best / 1e9:.2f}", f"{nbytes / min(one.bare_seconds) / 1e9:.2f}"
        exposed = f"{streams[made].exposed_seconds * 1e3:.0f}"
        table.add_row(
            str(len(prompt)), *made, f"{nbytes / 1e6:.1f}", f"{best:.3f}", *speeds, exposed
        )
    dense, compact, coded = streams[_DENSE], streams[_COMPACT], streams[_CODED]
    spent = compact.report.profile_seconds + compact.report.compact_seconds
    # rows are coded as they are copied; of a copy that took longer nothing can be said
    encoding = max(coded.report.compact_seconds - compact.report.compact_seconds, 1e-3)
    return {
        "stream_efficiency": Figure(
            shippings[_DENSE].efficiency, "ratio", "a bare gRPC stream of messages as large", 0.90
        ),
        # shipped after the last layer, as a share of shipping all of it
        "exposed_ship_ratio": Figure(
            dense.exposed_seconds / min(shippings[_DENSE].fetch_seconds), "ratio", "a held cache"
        ),
        "wire_ratio": Figure(compact.wire_bytes / dense.wire_bytes, "ratio", "the dense cache"),
        "wire_ratio_int8": Figure(coded.wire_bytes / dense.wire_bytes, "ratio", "the dense cache"),
        # slower links than this gain by profiling even if nothing else were gained
        "break_even_bandwidth": Figure(
            (dense.wire_bytes - compact.wire_bytes) / spent / 1e6, "MB/s", "profile and compact"
        ),
        # slower links than this gain by int8, once rows are chosen
        "break_even_bandwidth_int8": Figure(
            (compact.wire_bytes - coded.wire_bytes) / encoding / 1e6, "MB/s", "encoding"
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="*", default=[2048, 4096])
    parser.add_argument("--rounds", type=int, default=12, help="of fetching a held cache")
    parser.add_argument(
        "--prefills", type=int, default=3, help="of each way to a first token, or 0"
    )
    parser.add_argument("--threads", type=int, default=2)
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures, tables = measure(options)
    report(options, figures, tables, {"threads": options.threads, "tokens": options.tokens})


if __name__ == "__main__":
    main()
