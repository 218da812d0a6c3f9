"""The ways to decode that deploy/ offers, each as addresses for a client."""

from __future__ import annotations

import dataclasses
import json
import urllib.error
import urllib.request
from typing import Any

import grpc

from headwise.errors import from_rpc_error
from headwise.v1 import decode_pb2, store_pb2
from tests.deploy.rendered import one
from tests.interop.envoy import COMMITTED

_SERVICES = (
    decode_pb2.DESCRIPTOR.services_by_name["DecodeService"],
    store_pb2.DESCRIPTOR.services_by_name["CacheService"],
)
# every RPC of a client, as SERVICE/METHOD
CLIENT_RPCS = [
    f"{service.full_name}/{method.name}" for service in _SERVICES for method in service.methods
]


@dataclasses.dataclass(frozen=True, slots=True)
class Door:
    """An address; `authority` is the host name that the door is asked for, "" for the address."""

    target: str
    authority: str = ""

    def channel(self) -> grpc.Channel:
        options = (("grpc.default_authority", self.authority),) if self.authority else ()
        return grpc.insecure_channel(self.target, options)

    def call(self, rpc: str, metadata: tuple[tuple[str, str], ...] = ()) -> str:
        """Call the RPC with an empty request; returns the status and its reason."""
        with self.channel() as channel:
            # it reads the one answer of a unary method as well
            method: Any = channel.unary_stream(f"/{rpc}")
            try:
                list(method(b"", timeout=20, metadata=metadata))
            except grpc.RpcError as error:
                typed = from_rpc_error(error)
                return f"{typed.code.name} {typed.reason}"
        return "OK"

    def post(self, rpc: str) -> tuple[int, str]:
        """Call the RPC with an empty request in JSON; returns the HTTP status and the reason."""
        kind = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://{self.target}/{rpc}", b"{}", kind)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                answer.read()
                return answer.status, ""
        except urllib.error.HTTPError as error:
            with error:
                body = error.read()
            return error.code, json.loads(body)["details"][0]["reason"] if body else ""


def gateway_configuration(overlay: str) -> str:
    """The committed configuration with the matches of the gateway's route in the place of its own.

    The fields are those that a controller of the Gateway API writes for Envoy: a service's prefix
    for a match of a service, and the headers that a filter removes.
    """
    route = one(overlay, "GRPCRoute", "headwise")["spec"]
    [rule] = route["rules"]
    assert [ref["name"] for ref in rule["backendRefs"]] == ["headwise-decode"]
    assert [f["type"] for f in rule["filters"]] == ["RequestHeaderModifier"]
    removed = rule["filters"][0]["requestHeaderModifier"]["remove"]
    routes = [
        {
            "match": {"prefix": f"/{match['method']['service']}/"},
            "route": {"cluster": "decode", "timeout": "0s"},
        }
        for match in rule["matches"]
    ]
    host = {
        "name": "gateway",
        "domains": route["hostnames"],
        "request_headers_to_remove": removed,
        "routes": routes,
    }
    text = COMMITTED.read_text()
    mark = "                  virtual_hosts:\n                    - name: decode\n"
    assert text.count(mark) == 1
    # beside the committed one, which is asked for under no name any more
    mine = f"                  virtual_hosts:\n                    - {json.dumps(host)}\n"
    text = text.replace(mark, f"{mine}                    - name: decode\n")
    return text.replace('domains: ["*"]', 'domains: ["committed.invalid"]', 1)
