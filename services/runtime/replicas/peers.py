"""Finds the replica that a tag belongs to, among the addresses of a service."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import grpc

from headwise.channel import channel_options
from headwise.connection import Metadata
from headwise.errors import Unavailable
from headwise.v1 import replica_pb2, replica_pb2_grpc
from services.runtime.replicas.addresses import Address, PeerNames
from services.runtime.replicas.peer_credentials import PeerCredentials

# a replica answers from memory, so a longer silence is that of a process that hangs
_ASK_SECONDS = 2.0
# a tag that no replica has is not asked for again so soon, whoever repeats the call
_GONE_SECONDS = 1.0
_OLD_CHANNEL_SECONDS = 600.0


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """The tag that a replica answered with, "" for none; `silent` if no answer came in time."""

    tag: str
    silent: bool = False


class Peers:
    """The replicas of one service and their tags, for the event loop alone.

    Tags are asked for when one is unknown. Calls that need an answer at the same time share it.
    """

    def __init__(self, names: PeerNames, credentials: PeerCredentials) -> None:
        self._names = names
        self._credentials = credentials
        self._channels: dict[Address, grpc.aio.Channel] = {}
        self._opened_with: object = None
        self._owners: dict[str, Address] = {}
        self._gone_until: dict[str, float] = {}
        self._silent = False
        self._asking = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def find(self, tag: str, metadata: Metadata) -> grpc.aio.Channel | None:
        """Return a channel to the replica with the tag; None if there is no such replica.

        `metadata` names the caller to the replicas that are asked. Raises `Unavailable` if one of
        them does not answer, because it may be the one.
        """
        if tag not in self._owners and self._gone_until.get(tag, 0.0) < time.monotonic():
            await self._ask_all(metadata)
            if tag not in self._owners:
                if self._silent:
                    raise Unavailable("a replica does not answer", "REPLICA_UNREACHABLE")
                self._remember_gone(tag)
        address = self._owners.get(tag)
        return None if address is None else self._channel(address)

    def forget(self, tag: str) -> None:
        """Ask anew for a replica whose address did not answer."""
        self._owners.pop(tag, None)

    async def close(self) -> None:
        """Close all channels; calls on them are cancelled."""
        for closing in self._closing:
            closing.cancel()
        for channel in self._channels.values():
            await channel.close()

    async def _ask_all(self, metadata: Metadata) -> None:
        """Ask all replicas, in one round with all who wait for a round to begin."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask_next(metadata))
        await asyncio.shield(self._next)

    async def _ask_next(self, metadata: Metadata) -> None:
        async with self._asking:
            self._next = None
            addresses = await self._names.resolve()
            answers = await asyncio.gather(*(self._ask(each, metadata) for each in addresses))
            self._owners = {
                answer.tag: address
                for address, answer in zip(addresses, answers, strict=True)
                if answer.tag
            }
            self._silent = any(answer.silent for answer in answers)
            for address in self._channels.keys() - set(addresses):
                self._close(self._channels.pop(address))

    async def _ask(self, address: Address, metadata: Metadata) -> Asked:
        stub = replica_pb2_grpc.ReplicaServiceStub(self._channel(address))
        try:
            answer: replica_pb2.DescribeReplicaResponse = await stub.DescribeReplica(
                replica_pb2.DescribeReplicaRequest(), timeout=_ASK_SECONDS, metadata=metadata
            )
        except grpc.aio.AioRpcError as error:
            # an address that refuses connections has no process, and so no sessions; an older
            # version does not know the call
            return Asked("", silent=error.code() is grpc.StatusCode.DEADLINE_EXCEEDED)
        return Asked(answer.replica)

    def _channel(self, address: Address) -> grpc.aio.Channel:
        credentials = self._credentials.current()
        if credentials is not self._opened_with:
            for old in self._channels.values():
                self._close(old)
            self._channels, self._opened_with = {}, credentials
        if address not in self._channels:
            self._channels[address] = _open(address, credentials)
        return self._channels[address]

    def _close(self, channel: grpc.aio.Channel) -> None:
        """Close a channel once its calls have ended."""
        closing = asyncio.create_task(channel.close(_OLD_CHANNEL_SECONDS))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _remember_gone(self, tag: str) -> None:
        now = time.monotonic()
        self._gone_until = {t: until for t, until in self._gone_until.items() if until >= now}
        self._gone_until[tag] = now + _GONE_SECONDS


def _open(address: Address, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    options = (*channel_options(retries=False), ("grpc.enable_http_proxy", 0))
    if credentials is None:
        return grpc.aio.insecure_channel(address.target, options)
    named = (*options, ("grpc.ssl_target_name_override", address.name))
    return grpc.aio.secure_channel(address.target, credentials, named)
