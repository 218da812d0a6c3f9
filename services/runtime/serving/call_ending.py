"""The end of a call with a status, after which nothing holds the call."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, NoReturn

import grpc

from headwise.errors import HeadwiseError, to_trailing_metadata


@dataclasses.dataclass(frozen=True, slots=True)
class CallEnding:
    """The status of a failed call, without the error itself.

    An error holds the frames that it passed, and one of them often holds the error. Such a circle
    keeps the call, its request and its place among the streams of its connection until Python looks
    for circles: with 8 streams a connection was full after 10 to 17 failed calls.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    trailing: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def of(cls, error: HeadwiseError) -> CallEnding:
        return cls(error.code, error.reason, error.message, to_trailing_metadata(error))

    async def end(self, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        """End the call; one that the client has closed ends without a status."""
        try:
            await context.abort(self.code, self.message, self.trailing)
        except grpc.aio.AbortError as aborted:
            # gRPC keeps it in the call, whose frames it holds: another circle, to be opened once
            # gRPC has caught it
            asyncio.get_running_loop().call_soon(drop_frames, aborted)
            raise
        except grpc.aio.InternalError as closed:
            raise asyncio.CancelledError from closed


def drop_frames(error: BaseException) -> None:
    """Make an error, and those that led to it, hold no frame any more."""
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        each = rest.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            rest += (each.__cause__, each.__context__)
