"""The decode process: load, connect, serve, drain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from headwise.errors import HeadwiseError, NotSupported
from headwise.v1 import decode_pb2, decode_pb2_grpc, store_pb2_grpc
from kvstore.errors import FingerprintMismatch
from kvstore.kernels.dispatch import runs_triton
from kvstore.pool import PagePool, metadata_page_bytes, row_page_bytes
from kvstore.wire import WireLimits
from services.decode.arriving_caches import ArrivingCaches
from services.decode.cache_service import CacheForwarder
from services.decode.engine.engine import Engine
from services.decode.engine.loop_calls import LoopCalls
from services.decode.engine.schedule import Scheduler
from services.decode.engine.sequence import RunningSequence
from services.decode.engine.step import warm_up
from services.decode.generation import GenerationLimits
from services.decode.link.prefill_source import PrefillSource
from services.decode.memory.arbiter import MemoryArbiter, MemoryLimits
from services.decode.memory.freed_pages import FreedPages
from services.decode.memory.gauges import watch_memory
from services.decode.memory.intake import Intake
from services.decode.memory.resident_caches import ResidentCaches
from services.decode.memory.sessions import Sessions
from services.decode.memory.size_expectation import SizeExpectation
from services.decode.options import DecodeOptions, page_rows_for
from services.decode.parts import DecodeParts
from services.decode.service import DecodeServicer
from services.decode.session_routes import SESSION_ROUTES
from services.runtime.model.model_options import allowed_codecs, load_served_model
from services.runtime.model.served_model import ServedModel
from services.runtime.model.small_batches import prepare_for_small_batches
from services.runtime.process.serve_error import ServeError
from services.runtime.serving.server import Server
from services.runtime.startup.check_list import (
    link_problems,
    model_problems,
    pool_problems,
    server_problems,
)
from services.runtime.startup.problem import Problem, require_none
from services.runtime.startup.starting import starting

if TYPE_CHECKING:
    from services.decode.engine.cuda_graphs import CapturedSteps

log = logging.getLogger("headwise.decode")

_CONNECT_PAUSE_SECONDS = 0.5
_EXPIRY_SECONDS = 1.0
# blocks of suffixes that may be open at once; each has cells for 256 tokens
_STAGING_RANGES = 4


async def serve_decode(options: DecodeOptions) -> None:
    """Serve until SIGTERM. Raises `ServeError` if prefill turns out to serve another model."""
    require_none(_problems(options))
    with starting("Give a smaller --pool-bytes, --max-sequences or --max-sessions."):
        server = Server(
            options.server,
            options.security,
            options.port,
            decode_pb2.DESCRIPTOR.services_by_name["DecodeService"].full_name,
            SESSION_ROUTES,
        )
        served = load_served_model(options.model)
        prepare_for_small_batches(served.model)
        source = _source(served, options)
        # before the kernels, whose first compilation takes a minute
        pool = _pool(served, options)
        log.info("compiling the kernels, or loading them from the cache of an earlier start")
        warm_up(served, page_rows_for(options.page_rows, options.model))
        parts = _build(served, options, source, pool)
    servicer = DecodeServicer(parts, options)
    forwarder = CacheForwarder(source, parts.resident_caches)
    server.add(
        lambda grpc_server: decode_pb2_grpc.add_DecodeServiceServicer_to_server(
            servicer, grpc_server
        )
    )
    server.add(
        lambda grpc_server: store_pb2_grpc.add_CacheServiceServicer_to_server(
            forwarder, grpc_server
        )
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            helping = (
                tasks.create_task(_connect(source, server, options.prefill)),
                tasks.create_task(_expire_sessions(parts)),
            )
            await server.run()
            for task in helping:
                task.cancel()
    except* ServeError as group:
        raise group.exceptions[0] from group
    finally:
        await source.close()
        parts.engine.close()
        parts.sessions.close()
        parts.resident_caches.close()


def _problems(options: DecodeOptions) -> Iterator[Problem]:
    """Problems of the options, in the order in which they are looked at."""
    yield from model_problems(options.model)
    yield from server_problems(options.server, options.port, options.security.health_port)
    yield from link_problems(options.prefill)
    if options.cuda_graphs != "off" and not options.model.device.startswith("cuda"):
        found = f"--cuda-graphs {options.cuda_graphs}: --device {options.model.device} has none"
        yield Problem("cuda-graphs", found, "Give --device cuda, or --cuda-graphs off.")
    yield from pool_problems(options.pool_bytes, options.swap_bytes, options.model.device)


def _source(served: ServedModel, options: DecodeOptions) -> PrefillSource:
    return PrefillSource(
        options.prefill,
        served,
        limits=WireLimits(
            max_tokens=served.context_tokens,
            max_layers=len(served.shapes),
            max_cache_bytes=options.pool_bytes,
        ),
        stall_seconds=options.prefill_stall_seconds,
        link=options.link,
    )


def _build(
    served: ServedModel, options: DecodeOptions, source: PrefillSource, pool: PagePool
) -> DecodeParts:
    """Build the objects that the process holds, each from those before it."""
    loop_calls = LoopCalls(asyncio.get_running_loop())
    limits = _limits(served, options)
    freed = FreedPages(loop_calls.call)
    sessions = Sessions(max_sessions=options.max_sessions, on_freed=freed.notify)
    resident_caches = ResidentCaches(max_caches=options.max_resident_caches, on_freed=freed.notify)
    arbiter = MemoryArbiter[RunningSequence](
        pool,
        resident_caches,
        sessions,
        freed,
        MemoryLimits(
            max_sequences=options.max_sequences,
            max_queued=options.max_queued,
            reservation_timeout_seconds=options.reservation_timeout_seconds,
            swap_bytes=options.swap_bytes,
        ),
    )
    scheduler = Scheduler(
        max_sequences=options.max_sequences, ranges=_STAGING_RANGES, step_tokens=options.step_tokens
    )
    engine = Engine(served, pool, scheduler, arbiter, _captured(served, pool, options))
    # steps on a device leave the cores to arriving caches
    on_cpu = served.model.device.type == "cpu"
    intake = Intake(arbiter.reserve_for_arrival, lambda: on_cpu and engine.running)
    expectation = SizeExpectation(pool)
    watch_memory(pool, arbiter, sessions, resident_caches, options.swap_bytes)
    return DecodeParts(
        served=served,
        limits=limits,
        pool=pool,
        source=source,
        engine=engine,
        arbiter=arbiter,
        intake=intake,
        sessions=sessions,
        resident_caches=resident_caches,
        arrivals=ArrivingCaches(pool, source, arbiter, intake, expectation),
        expectation=expectation,
        loop_calls=loop_calls,
    )


def _limits(served: ServedModel, options: DecodeOptions) -> GenerationLimits:
    context = served.context_tokens
    return GenerationLimits(
        max_sequence_tokens=min(options.max_sequence_tokens or context, context),
        default_max_tokens=options.default_max_tokens,
        max_sequences=options.max_sequences,
        max_session_seconds=options.max_session_ttl_seconds,
        codecs=allowed_codecs(options.model.codecs),
    )


def _pool(served: ServedModel, options: DecodeOptions) -> PagePool:
    head_size = served.shapes[0].head_size
    rows = page_rows_for(options.page_rows, options.model)
    # as many mark pages as row pages: enough even if every head of every sequence needs marks
    page_bytes = row_page_bytes(rows, head_size, served.dtype) + metadata_page_bytes(rows)
    if options.pool_bytes < page_bytes:
        raise ServeError(
            f"--pool-bytes {options.pool_bytes}: one page takes {page_bytes} bytes. "
            "Give a larger --pool-bytes, or a smaller --page-rows."
        )
    return PagePool(
        served.shapes,
        pages=options.pool_bytes // page_bytes,
        page_rows=rows,
        dtype=served.dtype,
        device=served.model.device,
        # a turn on a session is open beside it
        sequences=2 * options.max_sequences
        + options.max_sessions
        + options.max_resident_caches
        + 1,
        sequence_tokens=_limits(served, options).max_sequence_tokens,
    )


def _captured(served: ServedModel, pool: PagePool, options: DecodeOptions) -> CapturedSteps | None:
    if options.cuda_graphs == "off":
        return None
    if not runs_triton(pool.storage.arena):
        raise ServeError("--cuda-graphs needs a CUDA device, and Triton")
    # imported where it can run: Triton is not there on every machine
    from services.decode.engine.cuda_graphs import CapturedSteps

    steps = CapturedSteps(
        served,
        pool,
        options.max_sequences,
        options.retain_every,
        fused=options.cuda_graphs == "compiled",
    )
    steps.prepare(allowed_codecs(options.model.codecs))
    return steps


async def _expire_sessions(parts: DecodeParts) -> None:
    while True:
        await asyncio.sleep(_EXPIRY_SECONDS)
        parts.sessions.expire()
        parts.arbiter.tick()
        parts.resident_caches.expire()


async def _connect(source: PrefillSource, server: Server, target: str) -> None:
    """Report SERVING once prefill has answered and serves the same model."""
    server.set_serving(False)
    told = False
    while True:
        try:
            await source.describe()
            break
        except FingerprintMismatch as error:
            raise ServeError(
                f"prefill at {target} serves another model, {error}. "
                "Give both processes the same --model, --revision and --dtype."
            ) from error
        except NotSupported as error:
            raise ServeError(
                f"--prefill {target}: another service answers there, no prefill. Give the address "
                "of a prefill; its port is 7081 by default."
            ) from error
        except HeadwiseError as error:
            if not told:
                log.warning("waiting for prefill: %s", error)
            told = True
            await asyncio.sleep(_CONNECT_PAUSE_SECONDS)
    log.info("prefill at %s serves the same model", target)
    server.set_serving(True)
