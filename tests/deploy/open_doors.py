"""Names the ways by which a stranger could reach something, in rendered manifests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from headwise.connection import TENANT_KEY
from tests.deploy.rendered import SERVICES, named

Resource = dict[str, Any]
# what is for clients; prefill's own service, health and reflection are not
_FOR_CLIENTS = {"headwise.v1.DecodeService", "headwise.v1.CacheService"}
_NEEDED = {
    "prefill": ("HEADWISE_TOKENS", "HEADWISE_TLS_CERTIFICATE", "HEADWISE_TLS_CLIENT_CA"),
    "decode": (
        *("HEADWISE_TOKENS", "HEADWISE_TLS_CERTIFICATE", "HEADWISE_TLS_CLIENT_CA"),
        *("HEADWISE_PREFILL_TOKEN", "HEADWISE_PREFILL_CA"),
    ),
}
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
# pods that may open a connection to a service's port, by the name of their label
_MAY_CALL = {
    "headwise-prefill": {("headwise-decode", 7081), ("headwise-prefill", 7081)},
    "headwise-decode": {("headwise-decode", 7080), ("headwise-endpoint-picker", 9090)},
}


def open_doors(resources: Sequence[Resource]) -> list[str]:
    """Return a sentence for each way in that nothing guards."""
    return [
        *_routes(resources),
        *_identity(resources),
        *_addresses(resources),
        *_policies(resources),
    ]


def _of(resources: Sequence[Resource], *kinds: str) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] in kinds]


def _pod(workload: Resource) -> Resource:
    pod: Resource = workload["spec"]["template"]["spec"]
    return pod


def _routes(resources: Sequence[Resource]) -> Iterator[str]:
    for gateway in _of(resources, "Gateway"):
        for listener in gateway["spec"]["listeners"]:
            if listener["protocol"] not in ("HTTPS", "TLS") or "tls" not in listener:
                yield f"the gateway listens in plain text: {listener['name']}"
    for route in _of(resources, "GRPCRoute", "HTTPRoute", "TCPRoute", "TLSRoute"):
        if route["kind"] != "GRPCRoute":
            yield f"{route['kind']} {route['metadata']['name']} names no methods"
            continue
        for rule in route["spec"]["rules"]:
            yield from _rule(rule)


def _rule(rule: Resource) -> Iterator[str]:
    called = {match.get("method", {}).get("service", "") for match in rule.get("matches", [{}])}
    if called - _FOR_CLIENTS:
        yield f"a route offers what is not for clients: {sorted(called - _FOR_CLIENTS)}"
    removed = {
        name.lower()
        for each in rule.get("filters", ())
        for name in each.get("requestHeaderModifier", {}).get("remove", ())
    }
    if TENANT_KEY not in removed:
        yield "a route lets strangers name a tenant"


def _identity(resources: Sequence[Resource]) -> Iterator[str]:
    for service in SERVICES:
        [container] = _pod(named(list(resources), "Deployment", f"headwise-{service}"))[
            "containers"
        ]
        given = {variable["name"]: variable["value"] for variable in container["env"]}
        mounted = [f"{mount['mountPath']}/" for mount in container["volumeMounts"]]
        for name in _NEEDED[service]:
            if not given.get(name, "").startswith(tuple(mounted)):
                yield f"{service} has no {name}"


def _addresses(resources: Sequence[Resource]) -> Iterator[str]:
    for service in _of(resources, "Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"Service {service['metadata']['name']} is reached from outside of the cluster"
        if service["spec"].get("externalIPs"):
            yield f"Service {service['metadata']['name']} has addresses outside of the cluster"
    for ingress in _of(resources, "Ingress"):
        yield f"Ingress {ingress['metadata']['name']} is a way in without a route"
    for workload in _of(resources, *_WORKLOADS):
        pod, name = _pod(workload), workload["metadata"]["name"]
        if pod.get("hostNetwork"):
            yield f"{name} is on its node's network"
        ports = [port for each in pod["containers"] for port in each.get("ports", ())]
        if any("hostPort" in port for port in ports):
            yield f"{name} has a port of its node"


def _policies(resources: Sequence[Resource]) -> Iterator[str]:
    policies = [policy["spec"] for policy in _of(resources, "NetworkPolicy")]
    for workload in _of(resources, *_WORKLOADS):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        name = workload["metadata"]["name"]
        own = [spec for spec in policies if selects(spec["podSelector"], labels)]
        for direction in ("Ingress", "Egress"):
            if not any(direction in spec["policyTypes"] for spec in own):
                yield f"no policy bounds the {direction.lower()} of {name}"
        for spec in own:
            for rule in spec.get("ingress", ()):
                yield from _sources(name, rule)


def _sources(name: str, rule: Resource) -> Iterator[str]:
    if not rule.get("from"):
        yield f"every address reaches {name}"
    ports = {port["port"] for port in rule.get("ports", ())}
    if not ports:
        yield f"every port of {name} is open"
    for source in rule.get("from", ()):
        if "ipBlock" in source:
            yield f"addresses outside of the cluster reach {name}"
        elif "namespaceSelector" not in source and name in _MAY_CALL:
            label = source["podSelector"]["matchLabels"].get("app.kubernetes.io/name")
            if any((label, port) not in _MAY_CALL[name] for port in ports):
                yield f"{label} reaches {name}"
        elif "namespaceSelector" in source and not _narrow(source):
            yield f"every pod of the cluster reaches {name}"
        elif name == "headwise-prefill" and ports != {9090}:
            yield "another namespace reaches prefill"


def _narrow(source: Resource) -> bool:
    """Whether a namespace is named, or a label that a pod must carry."""
    return bool(
        source["namespaceSelector"].get("matchLabels")
        or source.get("podSelector", {}).get("matchLabels")
    )


def selects(selector: Resource, labels: dict[str, str]) -> bool:
    """Whether a selector selects the pods with these labels."""
    expressions = selector.get("matchExpressions", ())
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )
