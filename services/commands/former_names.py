"""The table of options that had another name in release 0.1, to be emptied after one release."""

from __future__ import annotations

import os
import urllib.parse

import click

from services.commands.former_options import FormerOption, Values, renamed
from services.decode.options import DecodeOptions
from services.prefill.options import PrefillOptions
from services.runtime.process.trace_export import ENDPOINT, SAMPLER, SAMPLER_ARGUMENT


def _trace_endpoint(_: Values, given: Values) -> Values:
    return _variables({ENDPOINT: given["trace_endpoint"]}, "--trace-endpoint")


def _trace_ratio(_: Values, given: Values) -> Values:
    ratio = {SAMPLER: "parentbased_traceidratio", SAMPLER_ARGUMENT: str(given["trace_ratio"])}
    return _variables(ratio, "--trace-ratio")


def _variables(variables: dict[str, str], former: str) -> Values:
    """Set standard variables, and no setting. Raises `click.UsageError` where one is set."""
    for name, value in variables.items():
        if os.environ.get(name, value) != value:
            raise click.UsageError(f"{former} and {name} are both given: give {name} alone")
    os.environ.update({name: value for name, value in variables.items() if value})
    return {}


_REDIS_QUERY = {
    "store_redis_cluster": "cluster",
    "store_redis_ca": "ssl_ca_certs",
    "store_redis_certificate": "ssl_certfile",
    "store_redis_key": "ssl_keyfile",
}


def _redis_url(values: Values, given: Values) -> Values:
    url = values["store_redis"]
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise click.UsageError(f"--store-redis: {error}") from error
    added = {_REDIS_QUERY[name]: value for name, value in given.items() if value}
    twice = added.keys() & urllib.parse.parse_qs(parts.query).keys()
    if twice:
        raise click.UsageError(
            f"--store-redis names {min(twice)} already: give it in the address alone"
        )
    if not (url and added):
        return {}
    if "cluster" in added:
        added["cluster"] = "true"
    query = "&".join(filter(None, [parts.query, urllib.parse.urlencode(added, safe="/")]))
    return {"store_redis": parts._replace(query=query).geturl()}


def _mooncake_address(values: Values, given: Values) -> Values:
    address, metadata = values["store_mooncake"], given["store_mooncake_metadata"]
    if "?metadata=" in address:
        raise click.UsageError(
            "--store-mooncake-metadata and --store-mooncake both name the metadata server: "
            "give --store-mooncake alone"
        )
    return {"store_mooncake": f"{address}?metadata={metadata}"} if address and metadata else {}


def _cuda_graphs(_: Values, given: Values) -> Values:
    if not given.get("captured_steps"):
        return {"cuda_graphs": "off"}
    return {"cuda_graphs": "compiled" if given.get("fused_layers") else "on"}


FORMER_TRACING = (
    FormerOption({"trace_endpoint": str}, ENDPOINT, _trace_endpoint),
    FormerOption(
        {"trace_ratio": click.FloatRange(0, 1)}, f"{SAMPLER} and {SAMPLER_ARGUMENT}", _trace_ratio
    ),
)
FORMER_PREFILL = (
    *FORMER_TRACING,
    renamed(PrefillOptions, "max_queued_requests", "max_queued"),
    renamed(PrefillOptions, "outbox_bytes", "send_buffer_bytes"),
    renamed(PrefillOptions, "max_keep_seconds", "max_ttl_seconds"),
    FormerOption(
        dict.fromkeys(_REDIS_QUERY, str) | {"store_redis_cluster": bool},
        "--store-redis=rediss://HOST:PORT?" + "&".join(f"{n}=…" for n in _REDIS_QUERY.values()),
        _redis_url,
    ),
    FormerOption(
        {"store_mooncake_metadata": str},
        "--store-mooncake=HOST:PORT?metadata=URL",
        _mooncake_address,
    ),
)
FORMER_DECODE = (
    *FORMER_TRACING,
    renamed(DecodeOptions, "max_session_seconds", "max_session_ttl_seconds"),
    renamed(DecodeOptions, "max_contexts", "max_resident_caches"),
    renamed(DecodeOptions, "claim_seconds", "reservation_timeout_seconds"),
    FormerOption(
        {"captured_steps": bool, "fused_layers": bool},
        "--cuda-graphs=off, on or compiled",
        _cuda_graphs,
        replaced="cuda_graphs",
    ),
    FormerOption(
        {"retain_every": click.IntRange(1, 64)},
        "--cuda-graphs alone, which applies the rules at every token,",
        lambda _, given: dict(given),
    ),
)
