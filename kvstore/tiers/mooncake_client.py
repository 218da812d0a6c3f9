"""A connection to Mooncake Store through its own client."""

from __future__ import annotations

import dataclasses
from typing import Protocol, cast

from kvstore.errors import InvalidParameter


class MooncakeClient(Protocol):
    """The methods used of `MooncakeDistributedStore`; negative numbers are its error codes."""

    def put_parts(self, key: str, *parts: bytes) -> int: ...

    def upsert(self, key: str, value: bytes) -> int: ...

    def get(self, key: str) -> bytes: ...

    def get_buffer(self, key: str) -> object | None: ...

    def is_exist(self, key: str) -> int: ...

    def remove(self, key: str, force: bool) -> int: ...

    def close(self) -> int: ...


@dataclasses.dataclass(frozen=True, slots=True)
class MooncakeAddress:
    """The addresses of the master and its metadata server, and this process's memory for the store.

    The process lends `segment_bytes` of memory to the store while it runs, 0 for none.
    `buffer_bytes` bound the values in transfer.
    """

    master: str
    metadata_url: str
    hostname: str = "127.0.0.1"
    protocol: str = "tcp"
    devices: str = ""
    segment_bytes: int = 0
    buffer_bytes: int = 512 << 20


def connect_mooncake(address: MooncakeAddress) -> MooncakeClient:
    """A connected client.

    Raises `InvalidParameter` where the client or its libraries are not installed, and
    `ConnectionError` where the store does not answer.
    """
    try:
        from mooncake.store import MooncakeDistributedStore
    except ImportError as error:
        # apt: libibverbs1 libnuma1 librdmacm1
        message = f"needs Mooncake's client: pip install 'headwise[mooncake]' ({error})"
        raise InvalidParameter("store.mooncake", message) from error
    store = MooncakeDistributedStore()
    code = store.setup(
        address.hostname,
        address.metadata_url,
        address.segment_bytes,
        address.buffer_bytes,
        address.protocol,
        address.devices,
        address.master,
    )
    if code:
        raise ConnectionError(f"Mooncake Store at {address.master} refused with code {code}")
    return cast(MooncakeClient, store)
