"""Channel options both ends agree on: how a frozen or vanished peer is noticed."""

from __future__ import annotations

import json

ChannelOptions = tuple[tuple[str, int | str], ...]

# a stopped process still holds its sockets open, so only an unanswered ping tells. Noticed within
# 5 s + 3 s; without ping_timeout_ms keepalive alone was not enough in 27 s
_KEEPALIVE: ChannelOptions = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
)

_RETRY = {
    "methodConfig": [
        {
            "name": [{"service": "headwise.v1.DecodeService"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def channel_options(*, retries: bool) -> ChannelOptions:
    """Options of a client's channel.

    gRPC itself retries, and only while nothing of the answer has arrived: a generation that has
    begun is never silently begun again.
    """
    policy = (("grpc.service_config", json.dumps(_RETRY)),) if retries else ()
    return (*_KEEPALIVE, ("grpc.enable_retries", int(retries)), *policy)


def server_options() -> ChannelOptions:
    """Options of a server: it pings its clients too, and takes their pings every 5 s or slower."""
    return (
        *_KEEPALIVE,
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    )
