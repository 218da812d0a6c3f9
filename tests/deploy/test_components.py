"""Components do what they say: ways out, tokens, weights, replicas; patches find by name."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from headwise import Client, Unauthenticated, Unavailable
from services.demo.processes import running_service
from tests.deploy.open_doors import selects
from tests.deploy.rendered import (
    OVERLAYS,
    ROOT,
    SERVICES,
    arguments,
    named,
    resources,
    resources_with,
)
from tests.deploy.test_against_the_code import parsed
from tests.interop.doors import Door
from tests.interop.envoy import running_envoy
from tests.observe import wait_until
from tests.parts import require_program

_COMPONENTS = ROOT / "deploy/kustomize/components"
_OTHER = (
    "tls",
    "tokens",
    "monitoring",
    "keda",
    "own-redis",
    "tracing",
    "gateway",
    "inference-pool",
)
_SETS = {name: resources(name) for name in OVERLAYS} | {"others": resources_with(*_OTHER)}


def _variables(among: list[dict[str, Any]], service: str) -> dict[str, str]:
    [only] = named(among, "Deployment", f"headwise-{service}")["spec"]["template"]["spec"][
        "containers"
    ]
    return {variable["name"]: variable["value"] for variable in only["env"]}


def _ways_out(among: list[dict[str, Any]], labels: dict[str, str]) -> set[tuple[str, int]]:
    """Name and port of each destination that the policies of a pod allow."""
    found = set()
    for policy in (r["spec"] for r in among if r["kind"] == "NetworkPolicy"):
        if selects(policy["podSelector"], labels):
            for rule in policy.get("egress", ()):
                names = [_destination(to) for to in rule["to"]]
                found |= {(name, port["port"]) for name in names for port in rule["ports"]}
    return found


def _destination(to: dict[str, Any]) -> str:
    if "ipBlock" in to:
        return "anywhere"
    labels = to.get("podSelector", {}).get("matchLabels", {})
    namespace = to.get("namespaceSelector", {}).get("matchLabels", {})
    return labels.get("app.kubernetes.io/name") or namespace.get("kubernetes.io/metadata.name", "")


@pytest.mark.parametrize("name", sorted(_SETS))
@pytest.mark.parametrize("service", SERVICES)
def test_every_address_that_is_configured_can_be_reached(name: str, service: str) -> None:
    among = _SETS[name]
    deployment = named(among, "Deployment", f"headwise-{service}")
    ways = _ways_out(among, deployment["spec"]["template"]["metadata"]["labels"])
    assert ("kube-system", 53) in ways
    for variable, value in _variables(among, service).items():
        if variable in ("HEADWISE_PREFILL", "HEADWISE_PEERS"):
            host, _, port = value.removeprefix("dns:///").rpartition(":")
        elif variable in ("HEADWISE_STORE_REDIS", "OTEL_EXPORTER_OTLP_ENDPOINT"):
            url = urlsplit(value)
            host, port = url.hostname or "", str(url.port)
        else:
            continue
        # a Service of the overlay by its name, another by its namespace, or a name of the internet
        assert {(host, int(port)), (host.split(".")[-1], int(port)), ("anywhere", int(port))} & ways
    opened = {way for way in ways if way[0] == "anywhere"}
    assert opened == ({("anywhere", 6379)} if (name, service) == ("others", "prefill") else set())


def test_a_redis_of_ones_own_is_prefills_store() -> None:
    pod = named(_SETS["others"], "Deployment", "headwise-prefill")["spec"]["template"]["spec"]
    store = parsed("prefill", arguments(pod["containers"][0])).store
    assert store.store_redis.startswith("rediss://")
    [secret] = [v["secret"]["secretName"] for v in pod["volumes"] if v["name"] == "redis"]
    assert secret == "headwise-redis-password"


@pytest.mark.parametrize("name", sorted(_SETS))
def test_replicas_know_one_another_by_the_headless_service(name: str) -> None:
    for service in SERVICES:
        peers = _variables(_SETS[name], service)["HEADWISE_PEERS"]
        found = named(_SETS[name], "Service", f"headwise-{service}")["spec"]
        [port] = [p["port"] for p in found["ports"] if p["name"] == "grpc"]
        assert found["clusterIP"] == "None"
        assert peers == f"dns:///headwise-{service}:{port}"
        certificates = [r for r in _SETS[name] if r["kind"] == "Certificate"]
        if certificates:
            own = named(certificates, "Certificate", f"headwise-{service}")["spec"]
            # a replica is asked for under the Service's name, and shows its certificate as a client
            assert f"headwise-{service}" in own["dnsNames"]
            assert set(own["usages"]) == {"server auth", "client auth"}


def test_no_patch_finds_its_place_by_a_number() -> None:
    for file in sorted((ROOT / "deploy/kustomize").rglob("*.yaml")):
        assert not re.search(r"path: /\S*/(\d+|-)(/|\s|,|})", file.read_text()), file


def test_one_autoscaler_for_a_deployment() -> None:
    for among in _SETS.values():
        scaled = [
            r["spec"]["scaleTargetRef"]["name"]
            for r in among
            if r["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
        ]
        assert len(scaled) == len(set(scaled))
    kinds = {r["kind"] for r in _SETS["others"]}
    assert "ScaledObject" in kinds
    assert "HorizontalPodAutoscaler" not in kinds


def test_what_prometheus_selects_by_its_release_has_the_label() -> None:
    for kind in ("ServiceMonitor", "PrometheusRule"):
        labels = named(_SETS["production"], kind, "headwise")["metadata"]["labels"]
        assert labels["release"]


def test_the_claim_is_written_once_and_read_by_all() -> None:
    among = _SETS["production"]
    claim = named(among, "PersistentVolumeClaim", "headwise-models")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    job = named(among, "Job", "headwise-weights")["spec"]["template"]["spec"]
    [written] = [v for v in job["volumes"] if v["name"] == "models"]
    assert written["persistentVolumeClaim"] == {"claimName": "headwise-models"}
    for service in SERVICES:
        pod = named(among, "Deployment", f"headwise-{service}")["spec"]["template"]["spec"]
        [read] = [v for v in pod["volumes"] if v["name"] == "models"]
        assert read["persistentVolumeClaim"]["readOnly"] is True
        [waiting] = pod["initContainers"]
        model = _variables(among, service)["HEADWISE_MODEL"]
        assert f"test -e {model}/.complete" in waiting["command"][-1]
        assert waiting["image"] == pod["containers"][0]["image"]


def _fetch(folder: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": f"{folder}:{os.environ['PATH']}", "MODELS": str(folder / "models")}
    given |= {"MODEL": "some/model", "REVISION": "abc", **environment}
    hub = folder / "hf"
    hub.write_text(f"#!/bin/sh\n{script}")
    hub.chmod(0o755)
    command = ["bash", str(_COMPONENTS / "weights/fetch.sh")]
    return subprocess.run(command, env=given, capture_output=True, text=True)


def test_weights_are_fetched_once_and_marked_when_complete(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    current = tmp_path / "models/current"
    broken = _fetch(tmp_path, f"mkdir -p {current}; exit 1")
    assert broken.returncode != 0
    assert not (current / ".complete").exists()
    good = f'echo "$@" > {tmp_path}/asked; echo weights > {current}/model.safetensors'
    assert _fetch(tmp_path, good).returncode == 0
    assert (current / ".complete").exists()
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["download", "some/model", "--revision", "abc", "--local-dir", str(current)]
    # once more, as after another change of the overlay
    assert _fetch(tmp_path, "exit 1").returncode == 0


def test_the_hub_client_of_the_image_has_these_options() -> None:
    program = shutil.which("hf", path=str(Path(sys.executable).parent))
    assert program, "hf comes with huggingface_hub"
    told = subprocess.run([program, "download", "--help"], capture_output=True, text=True).stdout
    for option in ("--revision", "--local-dir"):
        assert option in told


@pytest.mark.processes
def test_tokens_made_by_the_script_let_their_tenant_in_and_nobody_else(
    tiny_model: Path, tmp_path: Path
) -> None:
    require_program("openssl", "apt-get install openssl")
    script = _COMPONENTS / "tokens/make-tokens.sh"
    subprocess.run(["bash", str(script), str(tmp_path), "acme"], check=True)
    token = (tmp_path / "acme.token").read_text()
    assert token not in (tmp_path / "decode/tokens.toml").read_text()
    model = ["--model", str(tiny_model)]
    guarded = [*model, "--tokens", str(tmp_path / "prefill/tokens.toml")]
    with running_service("prefill", guarded) as prefill:
        decode_arguments = [
            *(*model, "--prefill", prefill.target),
            *("--tokens", str(tmp_path / "decode/tokens.toml")),
            *("--prefill-token", str(tmp_path / "decode/prefill-token")),
        ]
        with (
            running_service("decode", decode_arguments) as decode,
            running_envoy(tmp_path, [decode.port], [prefill.port]) as envoy,
        ):
            with (
                Client(decode.target, token=token) as acme,
                Client(envoy.target, token=token) as far,
            ):
                wait_until(lambda: _described(far), 30, "decode behind Envoy")
                asked = acme.generate("x y z", max_tokens=2, session_ttl_seconds=60)
                kept = asked.result.session_id
                assert kept in {session.session_id for session in far.sessions.list()}
            for target in (prefill.target, decode.target, envoy.target):
                with (
                    Client(target, tenant="acme") as stranger,
                    pytest.raises(Unauthenticated),
                ):
                    stranger.caches.keep("x y z", ttl_seconds=5)
            refused = Door(envoy.target).post("headwise.v1.DecodeService/ListSessions")
            assert refused == (401, "TOKEN_MISSING")


def _described(client: Client) -> bool:
    with contextlib.suppress(Unavailable):
        return bool(client.describe(timeout_seconds=5).default_policy)
    return False
