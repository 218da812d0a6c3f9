"""The page of deploy/ lists the production overlay's objects in their order, and its secrets."""

from __future__ import annotations

import re

from tests.deploy.rendered import ROOT, resources

_PAGE = (ROOT / "deploy/README.md").read_text()
# kustomize adds a digest to a ConfigMap's name
_DIGEST = re.compile(r"-[a-z0-9]{10}$")


def test_every_object_is_listed_in_the_order_of_applying() -> None:
    listed = re.findall(r"^\| (\d+) \| (\w+ [\w-]+) \| \S", _PAGE, re.MULTILINE)
    rendered = [
        f"{each['kind']} {_without_digest(each['kind'], each['metadata']['name'])}"
        for each in resources("production")
    ]
    assert listed == [(str(number), name) for number, name in enumerate(rendered, 1)]


def _without_digest(kind: str, name: str) -> str:
    if kind == "ConfigMap" and name != "headwise-dashboards":
        return _DIGEST.sub("", name)
    return name


def test_every_secret_is_issued_or_listed() -> None:
    text = str(resources("production"))
    used = set(re.findall(r"'secretName': '([\w-]+)'", text))
    used |= set(re.findall(r"'certificateRefs': \[{'name': '([\w-]+)'", text))
    issued = {
        each["spec"]["secretName"]
        for each in resources("production")
        if each["kind"] == "Certificate"
    }
    listed = set(re.findall(r"^\| secret `([\w-]+)`", _PAGE, re.MULTILINE))
    assert used - issued == listed
