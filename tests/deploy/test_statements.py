"""Statements about deploy/ in documents and comments: figures, kinds, components, times."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from PIL import Image

from deploy.dashboards.files import target_ratio
from deploy.sizing import COMPACT
from kvstore.policies import parse_policy
from services.prefill.options import PrefillOptions
from tests.deploy.rendered import OVERLAYS, ROOT, container, resources, resources_with
from tests.deploy.test_manifests import _VERSIONS

_PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("operations", "sizing", "runbook")
}
_COMPONENTS = sorted(path.name for path in (ROOT / "deploy/kustomize/components").iterdir())
# kinds that somebody else applies, or that a page compares with
_ELSEWHERE = {"InferencePool", "ReadWriteMany", "ReadWriteOnce", "GatewayClass"}
_KIND = re.compile(r"\b(?:[A-Z][a-z]+){2,}s?\b")


def test_sizing_plans_with_the_budget_of_the_default_policy() -> None:
    fields = dataclasses.fields(PrefillOptions)
    [default] = [field.default for field in fields if field.name == "default_policy"]
    policy = parse_policy(str(default), {})
    budget = policy.budget.ratio  # type: ignore[attr-defined]
    assert COMPACT.kept == budget
    assert f"use {budget:.0%}, the budget".replace("%", " %") in _PAGES["sizing"]
    script = (ROOT / "deploy/sizing.py").read_text()
    assert f"keeps {budget:.0%} of".replace("%", " %") in script


def test_a_picture_shows_the_target_of_the_rule() -> None:
    pictures = sorted((ROOT / "docs/pictures").glob("*.png"))
    assert len(pictures) == 4
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.info["Target"] == f"{target_ratio():g}", picture.name


def test_kinds_that_are_spoken_of_are_rendered() -> None:
    kinds = {each["kind"] for overlay in OVERLAYS for each in resources(overlay)}
    kinds |= {each["kind"] for each in resources_with("monitoring", "keda")}
    known = kinds | {f"{kind}s" for kind in kinds} | _ELSEWHERE
    for file, text in _told():
        named = {word for word in _KIND.findall(text) if _is_kind(word)}
        assert named <= known, f"{file}: {named - known}"


def _told() -> Iterator[tuple[str, str]]:
    """Pages, and the comments of all configuration, by file."""
    yield from _PAGES.items()
    for file in sorted((ROOT / "deploy").rglob("*.yaml")):
        comments = [line.partition("#")[2] for line in file.read_text().splitlines()]
        yield str(file), "\n".join(comments)


def _is_kind(word: str) -> bool:
    """Whether a word has the end of a kind's name, such as PodMonitor."""
    ends = ("Monitor", "Policy", "Route", "Rule", "Budget", "Autoscaler", "Set", "Claim", "Pool")
    return word.removesuffix("s").endswith(ends) or word.endswith("Policies")


def test_every_component_has_its_row_and_every_row_its_component() -> None:
    table = _PAGES["operations"].partition("| component |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == _COMPONENTS


def test_times_and_versions_are_those_of_the_manifests() -> None:
    page = _PAGES["operations"]
    pause = container("production", "decode")["lifecycle"]["preStop"]["exec"]["command"][1]
    assert pause == "5"
    assert "waits five seconds" in page
    assert f"Kubernetes {_VERSIONS[0]} to {_VERSIONS[-1]}" in page


def test_the_overlays_comment_lists_its_components() -> None:
    text = (ROOT / "deploy/kustomize/overlays/production/kustomization.yaml").read_text()
    used = re.findall(r"components/([\w-]+)", text)
    assert set(used) <= set(_COMPONENTS)
    words = {
        "gpu": "GPUs",
        "tls": "mutual TLS",
        "tokens": "tokens",
        "monitoring": "monitoring",
        "valkey-cluster": "Valkey",
        "weights": "weights",
        "gateway": "gateway",
    }
    assert words.keys() == set(used)
    command = _PAGES["operations"].partition("overlays/production")[2]
    for place in (text, command):
        first = place.partition("\n")[0]
        assert all(word in first for word in words.values()), first
