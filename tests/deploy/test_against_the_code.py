"""Ports, flags, probes, times and metrics in deploy/ are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import click
import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.observe.__main__ import declared_metrics
from headwise.v1 import decode_pb2, store_pb2
from headwise.version import __version__
from services.commands.decode import decode
from services.commands.prefill import prefill
from services.commands.variables import KNOWN_VARIABLES
from services.decode.options import DecodeOptions
from services.prefill.options import PrefillOptions
from services.runtime.process.configuration import build
from services.runtime.serving.server import LIVE
from tests.conftest import Pair
from tests.deploy.rendered import OVERLAYS, ROOT, SERVICES, arguments, container, one, resources

_COMMANDS: dict[str, click.Command] = {"prefill": prefill, "decode": decode}
_KINDS = {"prefill": PrefillOptions, "decode": DecodeOptions}
_DOCKER = ROOT / "deploy" / "docker"
_EACH = [(overlay, service) for overlay in OVERLAYS for service in SERVICES]


def parsed(service: str, arguments: list[str]) -> Any:
    """The configuration that the arguments give; click refuses an unknown flag."""
    assert arguments[0] == service
    context = _COMMANDS[service].make_context(service, arguments[1:])
    return build(_KINDS[service], context.params)


def _compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((_DOCKER / "compose.yaml").read_text())["services"]
    return services


@pytest.mark.parametrize(("overlay", "service"), _EACH)
def test_flags_ports_and_probes(overlay: str, service: str) -> None:
    spec = container(overlay, service)
    options = parsed(service, arguments(spec))
    ports = {port["name"]: port["containerPort"] for port in spec["ports"]}
    assert options.server.host == "0.0.0.0"
    assert ports["grpc"] == options.port == _default_port(service)
    assert ports["metrics"] == options.server.metrics_port
    probed = options.port
    if "--health-port=7090" in arguments(spec):
        probed = ports["health"] = options.security.health_port
    for probe in ("startupProbe", "livenessProbe"):
        assert spec[probe]["grpc"] == {"port": probed, "service": LIVE}
    assert spec["readinessProbe"]["grpc"] == {"port": probed}
    mounted = {mount["mountPath"] for mount in spec["volumeMounts"]}
    assert mounted >= {"/models", "/cache", "/tmp"}


def _default_port(service: str) -> int:
    [option] = [o for o in _COMMANDS[service].params if o.name == "port"]
    return int(option.default)


@pytest.mark.parametrize(("overlay", "service"), _EACH)
def test_a_pod_has_time_for_its_drain(overlay: str, service: str) -> None:
    spec = container(overlay, service)
    pause = int(spec["lifecycle"]["preStop"]["exec"]["command"][1])
    pod = one(overlay, "Deployment", f"headwise-{service}")["spec"]["template"]["spec"]
    drain = parsed(service, arguments(spec)).server.drain_seconds
    assert pod["terminationGracePeriodSeconds"] >= pause + drain + 5


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_decode_fits_its_memory_and_finds_prefill(overlay: str) -> None:
    spec = container(overlay, "decode")
    options = parsed("decode", arguments(spec))
    limit = int(spec["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    on_host = options.pool_bytes if options.model.device == "cpu" else 0
    assert on_host + options.swap_bytes < limit * 0.75
    service = one(overlay, "Service", "headwise-prefill")
    assert service["spec"]["clusterIP"] == "None"
    [port] = [p["port"] for p in service["spec"]["ports"] if p["name"] == "grpc"]
    assert options.prefill == f"dns:///headwise-prefill:{port}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_prefill_keeps_caches_within_its_memory_and_in_the_valkey_beside_it(overlay: str) -> None:
    spec = container(overlay, "prefill")
    store = parsed("prefill", arguments(spec)).store
    limit = int(spec["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    assert store.store_memory_bytes < limit * 0.25
    valkeys = [
        resource["metadata"]["name"]
        for resource in resources(overlay)
        if resource["kind"] == "StatefulSet"
    ]
    addresses = [f"rediss://{name}:{_valkey_port(overlay, name)}" for name in valkeys]
    address, _, query = store.store_redis.partition("?")
    assert [address] == (addresses or [""])
    given = dict(parse_qsl(query))
    mounted = tuple(f"{mount['mountPath']}/" for mount in spec["volumeMounts"])
    files = [store.store_redis_password]
    files += [given.get(f"ssl_{name}", "") for name in ("ca_certs", "certfile", "keyfile")]
    for file in files:
        assert file.startswith(mounted) if valkeys else not file
    configurations = [r["data"] for r in resources(overlay) if r["kind"] == "ConfigMap"]
    settings = [data["valkey.conf"] for data in configurations if "valkey.conf" in data]
    assert [given.get("cluster") == "true"] == (
        ["cluster-enabled yes" in s for s in settings] or [False]
    )


def _valkey_port(overlay: str, name: str) -> int:
    """The port that its Service has and its policy opens to prefill, and to prefill alone."""
    [port] = [
        port["port"]
        for port in one(overlay, "Service", name)["spec"]["ports"]
        if port["name"] == "valkey"
    ]
    rule = one(overlay, "NetworkPolicy", name)["spec"]["ingress"][0]
    [source] = rule["from"]
    labels = one(overlay, "Deployment", "headwise-prefill")["spec"]["template"]["metadata"][
        "labels"
    ]
    assert source["podSelector"]["matchLabels"].items() <= labels.items()
    assert [opened["port"] for opened in rule["ports"]] == [port]
    return int(port)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_network_policies_open_the_ports_that_are_served(overlay: str) -> None:
    ports = {
        service: {p["containerPort"] for p in container(overlay, service)["ports"]}
        for service in SERVICES
    }
    for resource in resources(overlay):
        name = resource["metadata"]["name"]
        if resource["kind"] != "NetworkPolicy" or "valkey" in name or name == "headwise-default":
            continue
        open_ports = ports["prefill"] if name == "headwise-prefill" else ports["decode"]
        opened = {p["port"] for rule in resource["spec"]["ingress"] for p in rule["ports"]}
        assert opened <= open_ports
    route = [r for r in resources(overlay) if r["kind"] == "GRPCRoute"]
    served = [
        contract.DESCRIPTOR.services_by_name[name].full_name
        for contract, name in ((decode_pb2, "DecodeService"), (store_pb2, "CacheService"))
    ]
    for rule in (rule for one_route in route for rule in one_route["spec"]["rules"]):
        assert [match["method"]["service"] for match in rule["matches"]] == served
        assert {ref["port"] for ref in rule["backendRefs"]} <= ports["decode"]


def test_compose_starts_the_services_with_known_flags() -> None:
    services = _compose()
    for service in SERVICES:
        options = parsed(service, services[service]["command"])
        assert options.server.metrics_port == 9090
        grace = int(services[service]["stop_grace_period"].removesuffix("s"))
        assert grace >= options.server.drain_seconds + 5
        assert services[service]["read_only"]
    assert parsed("decode", services["decode"]["command"]).prefill == "prefill:7081"
    store = parsed("prefill", services["prefill"]["command"]).store
    assert "valkey" in services
    assert store.store_redis == "redis://valkey:6379"
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
    targets = [t for job in scraped["scrape_configs"] for t in job["static_configs"][0]["targets"]]
    assert targets == [f"{service}:9090" for service in SERVICES]


@pytest.mark.parametrize("path", sorted(_DOCKER.glob("Dockerfile.*")), ids=lambda path: path.suffix)
def test_a_dockerfile_runs_make_targets_alone_and_leaves_root(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    makefile = (ROOT / "Makefile").read_text()
    runs = [rest for keyword, rest in lines if keyword == "RUN"]
    assert runs
    for run in runs:
        target = re.fullmatch(r"make ([a-z-]+)( [A-Z_]+=\S+)*", run)
        assert target, run
        assert f"\n{target[1]}:" in makefile
    assert [rest for keyword, rest in lines if keyword == "USER"] == ["65532:65532"]
    ports = {int(port) for keyword, rest in lines if keyword == "EXPOSE" for port in rest.split()}
    assert ports == {_default_port(service) for service in SERVICES} | {9090}
    [environment] = [rest for keyword, rest in lines if keyword == "ENV"]
    ours = set(re.findall(r"\b(HEADWISE_\w+)=", environment))
    assert ours <= KNOWN_VARIABLES


def test_image_tags_are_of_this_version() -> None:
    tags = re.findall(r"headwise:([\w.]+)-\w+|newTag: ([\d.]+)-\w+", "".join(_deploy_texts()))
    assert {a or b for a, b in tags} == {__version__}
    assert len(tags) >= 5


def _deploy_texts() -> list[str]:
    folders = (_DOCKER, ROOT / "deploy" / "kustomize")
    return [p.read_text() for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]


def test_autoscalers_use_metrics_that_the_adapter_derives_from_declared_ones() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/adapter-rules.yaml").read_text())["rules"]
    offered: set[str] = set()
    for rule in rules:
        read = set(re.findall(r"headwise_[a-z_]+", rule["seriesQuery"]))
        assert read <= declared_metrics()
        offered |= {rule["name"]["as"]} if "name" in rule else read
    asked = {
        metric["pods"]["metric"]["name"]
        for resource in resources("production")
        if resource["kind"] == "HorizontalPodAutoscaler"
        for metric in resource["spec"]["metrics"]
    }
    assert asked == offered


@pytest.mark.processes
def test_the_liveness_probe_of_a_running_process(tiny_pair: Pair) -> None:
    for service in tiny_pair:
        with grpc.insecure_channel(service.target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(service=LIVE), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
