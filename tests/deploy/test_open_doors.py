"""The production overlay lets no stranger in; a change that opens a door is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.open_doors import open_doors
from tests.deploy.rendered import named, resources, resources_with

_Resources = list[dict[str, Any]]


def test_production_has_no_open_door() -> None:
    assert open_doors(resources("production")) == []


def test_other_components_open_none() -> None:
    names = ("tls", "tokens", "monitoring", "keda", "gateway", "inference-pool")
    more = ("own-redis", "tracing", "weights")
    assert open_doors(resources_with(*names, *more)) == []


def _no_tokens(among: _Resources) -> None:
    _variables(among, "headwise-decode", "HEADWISE_TOKENS")


def _no_tokens_at_prefill(among: _Resources) -> None:
    _variables(among, "headwise-prefill", "HEADWISE_TOKENS")


def _plain_text(among: _Resources) -> None:
    _variables(among, "headwise-decode", "HEADWISE_TLS_CERTIFICATE")


def _variables(among: _Resources, deployment: str, removed: str) -> None:
    [only] = named(among, "Deployment", deployment)["spec"]["template"]["spec"]["containers"]
    only["env"] = [variable for variable in only["env"] if variable["name"] != removed]


def _header_believed(among: _Resources) -> None:
    del named(among, "GRPCRoute", "headwise")["spec"]["rules"][0]["filters"]


def _everything_routed(among: _Resources) -> None:
    del named(among, "GRPCRoute", "headwise")["spec"]["rules"][0]["matches"]


def _prefill_routed(among: _Resources) -> None:
    rule = named(among, "GRPCRoute", "headwise")["spec"]["rules"][0]
    rule["matches"].append({"method": {"service": "headwise.v1.PrefillService"}})


def _plain_gateway(among: _Resources) -> None:
    [listener] = named(among, "Gateway", "headwise")["spec"]["listeners"]
    listener["protocol"] = "HTTP"


def _load_balancer(among: _Resources) -> None:
    named(among, "Service", "headwise-decode")["spec"]["type"] = "LoadBalancer"


def _host_network(among: _Resources) -> None:
    pod = named(among, "Deployment", "headwise-prefill")["spec"]["template"]["spec"]
    pod["hostNetwork"] = True


def _policy_for_all(among: _Resources) -> None:
    named(among, "NetworkPolicy", "headwise-prefill")["spec"]["ingress"][0]["from"] = []


def _client_at_prefill(among: _Resources) -> None:
    rule = named(among, "NetworkPolicy", "headwise-prefill")["spec"]["ingress"][0]
    rule["from"].append({"podSelector": {"matchLabels": {"headwise-client": "true"}}})


def _every_namespace(among: _Resources) -> None:
    rule = named(among, "NetworkPolicy", "headwise-decode")["spec"]["ingress"][0]
    rule["from"].append({"namespaceSelector": {}})


def _no_default_policy(among: _Resources) -> None:
    among.remove(named(among, "NetworkPolicy", "headwise-default"))
    among.remove(named(among, "NetworkPolicy", "headwise-weights"))


@pytest.mark.parametrize(
    "opened",
    [
        _no_tokens,
        _no_tokens_at_prefill,
        _plain_text,
        _header_believed,
        _everything_routed,
        _prefill_routed,
        _plain_gateway,
        _load_balancer,
        _host_network,
        _policy_for_all,
        _client_at_prefill,
        _every_namespace,
        _no_default_policy,
    ],
    ids=lambda opened: opened.__name__.strip("_"),
)
def test_an_opened_door_is_found(opened: Callable[[_Resources], None]) -> None:
    among = copy.deepcopy(resources("production"))
    opened(among)
    assert open_doors(among) != []
