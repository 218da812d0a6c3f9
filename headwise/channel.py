"""Options of gRPC channels and servers; they detect a peer that is frozen or gone."""

from __future__ import annotations

import json

ChannelOptions = tuple[tuple[str, int | str], ...]

# a stopped process keeps its sockets open; an unanswered ping is the only sign. Measured with
# SIGSTOP: detected after 8.1 s on a quiet connection, after 3 to 5 s during a transfer, also
# while a writer waits for its window. Without ping_timeout_ms, 27 s were not enough
_KEEPALIVE: ChannelOptions = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
)

# the kernel of a stopped process still accepts connections: a first call waited 20 s (the default)
# for the handshake; with this option it waits 5 s. Without the upper bound, a peer that was down
# for minutes is tried again up to two minutes after its return
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


def channel_options(*, retries: bool, proxy: bool = True) -> ChannelOptions:
    """Return the options of a client's channel; without `proxy` the environment's is not used.

    gRPC retries a call only while nothing of the answer has arrived, so a generation that has begun
    is never repeated silently.
    """
    policy = (("grpc.service_config", json.dumps(_RETRY)),) if retries else ()
    return (
        *_KEEPALIVE,
        *_RECONNECT,
        # calls alternate between all addresses of a name: a headless Service has one per pod
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.enable_retries", int(retries)),
        ("grpc.enable_http_proxy", int(proxy)),
        *policy,
    )


# a call that is begun and never ended holds up to 8 MiB of its request
MAX_CONNECTION_STREAMS = 128


def server_options(max_connection_streams: int = MAX_CONNECTION_STREAMS) -> ChannelOptions:
    """Return the options of a server, which pings clients and accepts a ping every 5 s.

    Calls beyond `max_connection_streams` of one connection wait in the client.
    """
    return (
        ("grpc.max_concurrent_streams", max_connection_streams),
        *_KEEPALIVE,
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
        # above the limit of a request, so that the server itself can say that it is too large
        ("grpc.max_receive_message_length", 8 << 20),
    )
