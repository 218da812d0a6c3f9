"""Resources of operators' kinds have the fields and the values that their schemas allow.

The packages' types tell unknown fields, and their compiled schemas wrong values. No package has the
schema of InferencePool.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.rendered import OVERLAYS, ROOT, named, resources, resources_with
from tests.parts import part_is_missing, require_program

_HERE = Path(__file__).parent / "custom_kinds"
_PACKAGES = {
    "cert-manager.io": "cert-manager",
    "gateway.networking.k8s.io": "gateway-api",
    "keda.sh": "keda",
    "monitoring.coreos.com": "prometheus-operator",
}
_RENDERED = {name: resources(name) for name in OVERLAYS} | {
    "keda": resources_with("monitoring", "keda"),
    "inference pool": resources_with("gateway", "inference-pool"),
}


@pytest.fixture(scope="module")
def schemas() -> Path:
    """A folder with the schemas and a compiler, kept under build/ between runs."""
    npm = require_program("npm", "apt-get install nodejs npm")
    folder = ROOT / "build" / "custom-kinds"
    folder.mkdir(parents=True, exist_ok=True)
    for file in _HERE.iterdir():
        shutil.copy(file, folder)
    if not (folder / "node_modules" / "typescript").exists():
        quietly = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock")
        done = subprocess.run(
            [npm, "install", *quietly], cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            part_is_missing(f"npm cannot install the schemas: {done.stderr}")
    return folder


def _problems(schemas: Path, among: Sequence[dict[str, Any]]) -> list[str]:
    own = [each for each in among if _group(each) in _PACKAGES]
    command = [require_program("node", "apt-get install nodejs"), "validate.js"]
    done = subprocess.run(
        command, cwd=schemas, input=json.dumps(own), capture_output=True, text=True, check=True
    )
    return [*json.loads(done.stdout), *_unknown_fields(schemas, own)]


def _unknown_fields(schemas: Path, among: Sequence[dict[str, Any]]) -> list[str]:
    """Return the complaints of the compiler about the resources as literals of their types."""
    lines = []
    for number, each in enumerate(among):
        kind, package = each["kind"], f"@kubernetes-models/{_PACKAGES[_group(each)]}"
        lines += [
            f'import type {{ I{kind} as T{number} }} from "{package}/{each["apiVersion"]}";',
            f"export const r{number}: T{number} = {json.dumps(each)};",
        ]
    (schemas / "resources.ts").write_text("\n".join(lines))
    command = [schemas / "node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck"]
    command += ["--target", "es2022", "--module", "nodenext", "resources.ts"]
    done = subprocess.run(command, cwd=schemas, capture_output=True, text=True)
    return done.stdout.splitlines()


def _group(resource: dict[str, Any]) -> str:
    return str(resource["apiVersion"].partition("/")[0])


@pytest.mark.parametrize("name", sorted(_RENDERED))
def test_custom_resources_are_valid(schemas: Path, name: str) -> None:
    assert _problems(schemas, _RENDERED[name]) == []


def test_a_misspelt_field_and_a_wrong_value_are_found(schemas: Path) -> None:
    route = copy.deepcopy(named(_RENDERED["production"], "GRPCRoute", "headwise"))
    route["spec"]["rules"][0]["backendRefz"] = []
    assert any("backendRefz" in problem for problem in _problems(schemas, [route]))
    certificate = copy.deepcopy(named(_RENDERED["production"], "Certificate", "headwise-decode"))
    certificate["spec"]["dnsNames"] = "headwise-decode"
    assert any("dnsNames" in problem for problem in _problems(schemas, [certificate]))
