"""The prefill process: load, serve, drain."""

from __future__ import annotations

from headwise.v1 import prefill_pb2, prefill_pb2_grpc
from kvstore.errors import UnknownPolicy
from kvstore.policies import parse_policy
from services.prefill.options import PrefillOptions
from services.prefill.service import PrefillServicer
from services.runtime.model_options import load_served_model, require_codecs
from services.runtime.serve_error import ServeError
from services.runtime.server import Server


async def serve_prefill(options: PrefillOptions) -> None:
    """Serve until SIGTERM. Raises `ServeError` where the configuration cannot be served."""
    _require_policy(options.default_policy)
    require_codecs(options.model)
    server = Server(
        options.server,
        options.security,
        options.port,
        prefill_pb2.DESCRIPTOR.services_by_name["PrefillService"].full_name,
    )
    served = load_served_model(options.model)
    servicer = PrefillServicer(served, options)
    server.add(
        lambda grpc_server: prefill_pb2_grpc.add_PrefillServiceServicer_to_server(
            servicer, grpc_server
        )
    )
    await server.set_serving(True)
    await server.run()


def _require_policy(name: str) -> None:
    try:
        parse_policy(name, {})
    except UnknownPolicy as error:
        raise ServeError(f"--default-policy: {error}") from error
