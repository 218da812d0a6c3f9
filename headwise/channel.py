"""Channel options both ends agree on: how a frozen or vanished peer is noticed."""

from __future__ import annotations

import json

ChannelOptions = tuple[tuple[str, int | str], ...]

# a stopped process still holds its sockets open, so only an unanswered ping tells. Measured with
# SIGSTOP: noticed after 8.1 s on a quiet connection, after 3 to 5 s while a cache is on its way, a
# writer that waits for its window included; without ping_timeout_ms 27 s were not enough
_KEEPALIVE: ChannelOptions = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
)

# the kernel of a stopped process still accepts connections: a first call waited 20 s (the default)
# for the handshake, with this 5 s. Without the upper bound, a peer that was away for minutes is
# tried again only two minutes after it is back
_RECONNECT: ChannelOptions = (
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
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
    return (
        *_KEEPALIVE,
        *_RECONNECT,
        # over all addresses of a name: behind a headless Service each pod is one
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.enable_retries", int(retries)),
        *policy,
    )


def server_options() -> ChannelOptions:
    """Options of a server: it pings its clients too, and takes their pings every 5 s or slower."""
    return (
        *_KEEPALIVE,
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    )
