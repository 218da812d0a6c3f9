"""The decode process: load, connect, serve, drain."""

from __future__ import annotations

import asyncio
import logging

from headwise.errors import HeadwiseError
from headwise.v1 import decode_pb2, decode_pb2_grpc
from kvstore.errors import FingerprintMismatch
from kvstore.pool import PagePool, page_bytes
from kvstore.wire import WireLimits
from services.decode.engine import Engine
from services.decode.options import DecodeOptions
from services.decode.service import DecodeServicer
from services.decode.source import PrefillSource
from services.decode.step import warm_up
from services.runtime.model import ServedModel
from services.runtime.model_options import load_served_model
from services.runtime.server import ServeError, Server
from services.runtime.small_batches import prepare_for_small_batches

log = logging.getLogger("headwise.decode")

_CONNECT_PAUSE_SECONDS = 0.5


async def serve_decode(options: DecodeOptions) -> None:
    """Serve until SIGTERM. Raises `ServeError` if prefill turns out to serve another model."""
    server = Server(
        options.server,
        options.port,
        decode_pb2.DESCRIPTOR.services_by_name["DecodeService"].full_name,
    )
    served = load_served_model(options.model)
    prepare_for_small_batches(served.model)
    source = PrefillSource(
        options.prefill,
        served,
        limits=WireLimits(
            max_tokens=served.context_tokens,
            max_layers=len(served.shapes),
            max_cache_bytes=options.pool_bytes,
        ),
        stall_seconds=options.prefill_stall_seconds,
    )
    log.info("compiling the kernels, or loading them from the cache of an earlier start")
    warm_up(served)
    engine = Engine(served)
    servicer = DecodeServicer(served, options, _pool(served, options), source, engine)
    server.add(
        lambda grpc_server: decode_pb2_grpc.add_DecodeServiceServicer_to_server(
            servicer, grpc_server
        )
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(_connect(source, server, options.prefill))
            await server.run()
            connecting.cancel()
    except* ServeError as group:
        raise group.exceptions[0] from group
    finally:
        await source.close()
        engine.close()


def _pool(served: ServedModel, options: DecodeOptions) -> PagePool:
    head_size = served.shapes[0].head_size
    return PagePool(
        pages=options.pool_bytes // page_bytes(options.page_rows, head_size, served.dtype),
        page_rows=options.page_rows,
        head_size=head_size,
        dtype=served.dtype,
        device=served.model.device,
    )


async def _connect(source: PrefillSource, server: Server, target: str) -> None:
    """Report SERVING once prefill has answered and serves the same model."""
    await server.set_serving(False)
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
        except HeadwiseError as error:
            if not told:
                log.warning("waiting for prefill: %s", error)
            told = True
            await asyncio.sleep(_CONNECT_PAUSE_SECONDS)
    log.info("prefill at %s serves the same model", target)
    await server.set_serving(True)
