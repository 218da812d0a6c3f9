"""Channels to several decode replicas, and the replica that a request's session belongs to."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import grpc

from headwise.connection import Metadata
from headwise.loop_channel import LoopChannel
from headwise.v1 import replica_pb2, replica_pb2_grpc

# the id of a session ends in the tag of the replica that has it
SESSION_ID = re.compile(r"[0-9a-f]{32}([0-9a-f]{12})")
_ASK_SECONDS = 2.0
_Asks = Callable[[], Metadata]


def session_tag(request: object) -> str:
    """Return the tag of the replica that has the request's session; "" if it names none."""
    found = SESSION_ID.fullmatch(getattr(request, "session_id", ""))
    return found[1] if found else ""


class _Turns:
    """Numbers of replicas by turns, those that fail last; and the numbers of known tags."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._turns = itertools.cycle(range(count))
        self.owners: dict[str, int] = {}
        self.states = [grpc.ChannelConnectivity.IDLE] * count

    def next(self) -> int:
        """Return the next replica that is not known to fail."""
        for _ in range(self._count):
            number = next(self._turns)
            if self.states[number] is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                return number
        return number

    def owner(self, tag: str) -> int | None:
        """Return the replica with the tag as long as its connection stands."""
        number = self.owners.get(tag)
        if number is None or self.states[number] is not grpc.ChannelConnectivity.READY:
            return None
        return number


class RoutedChannel:
    """Several channels used as one: a session's calls go to its replica, others by turns.

    A call for a session whose replica is not among them goes by turns too, and the replica that
    receives it answers why.
    """

    def __init__(self, channels: Sequence[grpc.Channel], metadata: _Asks) -> None:
        self.channels = tuple(channels)
        self._metadata = metadata
        self._turns = _Turns(len(self.channels))
        for number, channel in enumerate(self.channels):
            channel.subscribe(self._noting(number), try_to_connect=True)

    def unary_unary(self, *arguments: Any, **keywords: Any) -> Callable[..., Any]:
        """Return a method that calls the request's replica."""
        return self._routed([c.unary_unary(*arguments, **keywords) for c in self.channels])

    def unary_stream(self, *arguments: Any, **keywords: Any) -> Callable[..., Any]:
        """Return a method that calls the request's replica."""
        return self._routed([c.unary_stream(*arguments, **keywords) for c in self.channels])

    def close(self) -> None:
        """Close all channels."""
        for channel in self.channels:
            channel.close()

    def _noting(self, number: int) -> Callable[[grpc.ChannelConnectivity], None]:
        def note(state: grpc.ChannelConnectivity) -> None:
            self._turns.states[number] = state

        return note

    def _routed(self, methods: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
        def call(request: object, **keywords: Any) -> Any:
            return methods[self._number(session_tag(request))](request, **keywords)

        return call

    def _number(self, tag: str) -> int:
        turns = self._turns
        if tag and turns.owner(tag) is None:
            turns.owners = self._ask_all()
        number = turns.owners.get(tag)
        return turns.next() if number is None else number

    def _ask_all(self) -> dict[str, int]:
        request, metadata = replica_pb2.DescribeReplicaRequest(), self._metadata()
        asked = [
            replica_pb2_grpc.ReplicaServiceStub(channel).DescribeReplica.future(
                request, timeout=_ASK_SECONDS, metadata=metadata
            )
            for channel in self.channels
        ]
        answers = enumerate(asked)
        return {one.result().replica: number for number, one in answers if one.exception() is None}


class AsyncRoutedChannel:
    """The same for asyncio."""

    def __init__(self, channels: Sequence[LoopChannel], metadata: _Asks) -> None:
        self.channels = tuple(channels)
        self._metadata = metadata
        self._turns = _Turns(len(self.channels))

    def unary_unary(self, *arguments: Any, **keywords: Any) -> Callable[..., Any]:
        """Return a coroutine function that calls the request's replica."""
        methods = [c.unary_unary(*arguments, **keywords) for c in self.channels]

        async def call(request: object, **keywords: Any) -> Any:
            number = await self._number(session_tag(request))
            return await methods[number](request, **keywords)

        return call

    def unary_stream(self, *arguments: Any, **keywords: Any) -> Callable[..., Any]:
        """Return a method that calls the request's replica, and gives the call at once."""
        methods = [c.unary_stream(*arguments, **keywords) for c in self.channels]

        async def begin(request: object, keywords: dict[str, Any]) -> Any:
            number = await self._number(session_tag(request))
            return methods[number](request, **keywords)

        return lambda request, **keywords: _BeginningCall(begin(request, keywords))

    async def close(self) -> None:
        """Close all channels."""
        for channel in self.channels:
            await channel.close()

    async def _number(self, tag: str) -> int:
        turns = self._turns
        turns.states = [channel.get_state(try_to_connect=True) for channel in self.channels]
        if tag and turns.owner(tag) is None:
            turns.owners = await self._ask_all()
        number = turns.owners.get(tag)
        return turns.next() if number is None else number

    async def _ask_all(self) -> dict[str, int]:
        request, metadata = replica_pb2.DescribeReplicaRequest(), self._metadata()
        asked = [
            replica_pb2_grpc.ReplicaServiceStub(channel.current()).DescribeReplica(
                request, timeout=_ASK_SECONDS, metadata=metadata
            )
            for channel in self.channels
        ]
        answers = enumerate(await asyncio.gather(*asked, return_exceptions=True))
        return {
            one.replica: number
            for number, one in answers
            if isinstance(one, replica_pb2.DescribeReplicaResponse)
        }


class _BeginningCall:
    """A streaming call whose replica is being found; has what the client uses of a call."""

    def __init__(self, begin: Coroutine[Any, Any, Any]) -> None:
        self._beginning = asyncio.ensure_future(begin)

    async def read(self) -> Any:
        return await (await asyncio.shield(self._beginning)).read()

    async def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = await (await asyncio.shield(self._beginning)).code()
        return code

    def cancel(self) -> None:
        if not self._beginning.cancel() and not self._beginning.cancelled():
            self._beginning.result().cancel()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        def begun(beginning: asyncio.Future[Any]) -> None:
            if not beginning.cancelled() and beginning.exception() is None:
                beginning.result().add_done_callback(lambda _: callback(self))

        self._beginning.add_done_callback(begun)
