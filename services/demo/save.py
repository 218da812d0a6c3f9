"""Saves the cache of the demo's prompt to a file."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import grpc

from headwise import Policy
from headwise.channel import channel_options
from headwise.errors import from_rpc_error
from headwise.v1 import prefill_pb2, prefill_pb2_grpc
from kvstore.cache import FORMAT_VERSIONS
from kvstore.tiers.file import save_cache
from services.runtime.serving.frames import assemble_cache


def save_prefilled(
    target: str, token_ids: Sequence[int], policy: Policy, file: pathlib.Path
) -> None:
    """Prefill the tokens at `target` and write the cache as a safetensors file."""
    request = prefill_pb2.PrefillRequest(
        token_ids=token_ids, policy=policy.to_proto(), cache_formats=FORMAT_VERSIONS
    )
    with grpc.insecure_channel(target, channel_options(retries=False)) as channel:
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        try:
            cache = assemble_cache(stub.Prefill(request))
        except grpc.RpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error
    save_cache(cache, file)
