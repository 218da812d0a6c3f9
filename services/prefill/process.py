"""The prefill process: load, serve, drain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from headwise.v1 import prefill_pb2, prefill_pb2_grpc, store_pb2_grpc
from kvstore.errors import UnknownPolicy
from kvstore.policies import parse_policy
from services.prefill.cache_service import CacheServicer
from services.prefill.fetch_handler import fetch_handler
from services.prefill.lease_routes import LEASE_ROUTES
from services.prefill.options import PrefillOptions
from services.prefill.parts import PrefillParts, build_parts
from services.prefill.service import PrefillServicer
from services.prefill.store.store_watch import watch_store
from services.prefill.store.stores import require_stores
from services.runtime.model.model_options import load_served_model
from services.runtime.serving.server import Server
from services.runtime.startup.check_list import model_problems, server_problems, store_problems
from services.runtime.startup.problem import Problem, require_none
from services.runtime.startup.starting import starting

_EXPIRY_SECONDS = 0.5


async def serve_prefill(options: PrefillOptions) -> None:
    """Serve until SIGTERM. Raises `ServeError` where the configuration cannot be served."""
    require_none(_problems(options))
    require_stores(options.store)
    with starting("Give a smaller --store-memory-bytes, or a smaller model."):
        server = Server(
            options.server,
            options.security,
            options.port,
            prefill_pb2.DESCRIPTOR.services_by_name["PrefillService"].full_name,
            LEASE_ROUTES,
        )
        served = load_served_model(options.model)
        parts = build_parts(served, options)
    watch_store(parts.store)
    prompts, caches = (
        PrefillServicer(served, parts, options),
        CacheServicer(served, parts, options),
    )
    server.add(
        lambda grpc_server: prefill_pb2_grpc.add_PrefillServiceServicer_to_server(
            prompts, grpc_server
        )
    )
    server.add(lambda grpc_server: grpc_server.add_generic_rpc_handlers((fetch_handler(caches),)))
    server.add(
        lambda grpc_server: store_pb2_grpc.add_CacheServiceServicer_to_server(caches, grpc_server)
    )
    server.set_serving(True)
    expiring = asyncio.create_task(_expire_leases(parts))
    try:
        await server.run()
    finally:
        expiring.cancel()
        await parts.store.close()


async def _expire_leases(parts: PrefillParts) -> None:
    while True:
        await asyncio.sleep(_EXPIRY_SECONDS)
        parts.store.expire_leases()


def _problems(options: PrefillOptions) -> Iterator[Problem]:
    """Problems of the options, in the order in which they are looked at."""
    yield from _policy_problems(options.default_policy)
    yield from model_problems(options.model)
    yield from server_problems(options.server, options.port, options.security.health_port)
    yield from store_problems(options.store.store_memory_bytes, options.store.store_disk)


def _policy_problems(name: str) -> Iterator[Problem]:
    try:
        parse_policy(name, {})
    except UnknownPolicy as error:
        yield Problem("policy", f"--default-policy: {error}", "Give one of these.")
