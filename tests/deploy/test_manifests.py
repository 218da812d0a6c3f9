"""Rendered manifests are valid for every supported Kubernetes version, and hardened."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.deploy.rendered import OVERLAYS, ROOT, one, resources, text_of
from tests.parts import part_is_missing

_VERSIONS = [f"1.{minor}" for minor in range(29, 38)]
# kinds of operators, whose schemas are not among those of Kubernetes
_CUSTOM = {
    "BackendTLSPolicy",
    "Certificate",
    "Gateway",
    "GRPCRoute",
    "Issuer",
    "PrometheusRule",
    "ServiceMonitor",
}


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_is_valid(overlay: str, version: str) -> None:
    for resource in resources(overlay):
        if resource["kind"] not in _CUSTOM:
            kubernetes_validate.validate(resource, version, strict=True)


def test_strict_validation_finds_a_misspelt_field() -> None:
    deployment = one("laptop", "Deployment", "headwise-decode")
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


def test_checkov_finds_nothing_but_the_listed_exceptions(tmp_path: Path) -> None:
    own = ROOT / "build/checkov/bin/checkov"
    checkov = str(own) if own.exists() else shutil.which("checkov")
    if not checkov:
        part_is_missing("checkov is not installed: make checkov")
    for overlay in OVERLAYS:
        (tmp_path / f"{overlay}.yaml").write_text(text_of(overlay))
    done = subprocess.run(
        [
            *(checkov, "--skip-download", "--framework", "kubernetes", "--quiet", "--compact"),
            *("--config-file", ROOT / "deploy/kustomize/checkov.yaml", "-d", tmp_path),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_a_restricted_security_context(overlay: str) -> None:
    for resource in resources(overlay):
        if resource["kind"] not in {"Deployment", "StatefulSet", "Job"}:
            continue
        pod: dict[str, Any] = resource["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        # a variable HEADWISE_… made from a Service's name would stop our processes
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert not container["image"].endswith(":latest")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_workload_has_its_policies_and_is_spread_over_nodes(overlay: str) -> None:
    kinds = {(r["kind"], r["metadata"]["name"]) for r in resources(overlay)}
    for name in ("headwise-prefill", "headwise-decode"):
        for kind in (
            "Deployment",
            "NetworkPolicy",
            "PodDisruptionBudget",
            "Service",
            "ServiceAccount",
        ):
            assert (kind, name) in kinds
        assert ("HorizontalPodAutoscaler", name) in kinds or overlay == "laptop"
        pod = one(overlay, "Deployment", name)["spec"]["template"]["spec"]
        keys = [spread["topologyKey"] for spread in pod["topologySpreadConstraints"]]
        assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


def test_every_client_of_a_tls_port_in_production_has_a_certificate_of_its_authority() -> None:
    issued = {
        r["spec"]["secretName"]: r["spec"]["issuerRef"]["name"]
        for r in resources("production")
        if r["kind"] == "Certificate"
    }
    gateway = one("production", "Gateway", "headwise")["spec"]
    client = gateway["tls"]["backend"]["clientCertificateRef"]["name"]
    validation = one("production", "BackendTLSPolicy", "headwise-decode")["spec"]["validation"]
    [authority] = validation["caCertificateRefs"]
    assert issued[client] == issued[authority["name"]] == "headwise"
    certificate = one("production", "Certificate", "headwise-decode")["spec"]
    assert validation["hostname"] in certificate["dnsNames"]
    for service in ("headwise-prefill", "headwise-decode"):
        volumes = one("production", "Deployment", service)["spec"]["template"]["spec"]["volumes"]
        [secret] = [v["secret"]["secretName"] for v in volumes if v["name"] == "tls"]
        assert issued[secret] == "headwise"
        ports = one("production", "Service", service)["spec"]["ports"]
        assert not any("appProtocol" in port for port in ports)
