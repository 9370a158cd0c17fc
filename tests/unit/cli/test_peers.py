"""Ends of a connection to explain, as users write them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from fimbria.ipam.v1 import ipam_pb2
from fimbria.loader.v1 import loader_pb2
from fimbria.policy.v1 import policy_pb2

from cli.client import Cluster
from cli.errors import BadInput, CliError
from cli.peers import parse_peers

WEB = loader_pb2.Endpoint(
    pod_namespace="shop",
    pod_name="web",
    node="node-1",
    ipv4="10.244.1.2",
    ipv6="fd00::1:2",
    labels=["k8s:app=web"],
)


def answering(message: Any) -> Any:
    return lambda request, timeout: message


def cluster() -> Cluster:
    """One node with one pod, beside another node."""
    endpoints = SimpleNamespace(ListEndpoints=answering(loader_pb2.ListEndpointsResponse(endpoints=[WEB])))
    nodes = [ipam_pb2.Node(name=f"node-{n}", ipv4=f"172.31.1.{n}") for n in (1, 2)]
    fake = SimpleNamespace(
        targets=SimpleNamespace(loaders={"node-1": ""}),
        endpoints=lambda node: endpoints,
        nodes=SimpleNamespace(ListNodes=answering(ipam_pb2.ListNodesResponse(nodes=nodes))),
    )
    return cast(Cluster, fake)


def sender(text: str, target: str = "shop/web", family: int | None = None) -> policy_pb2.Peer:
    return parse_peers(cluster(), text, target, family)[0]


@pytest.mark.parametrize(
    ("text", "labels", "address"),
    [
        ("shop/web", ["k8s:app=web"], "10.244.1.2"),
        ("10.244.1.2", ["k8s:app=web"], "10.244.1.2"),
        ("192.0.2.1", [], "192.0.2.1"),
        ("app=web,reserved:x", ["k8s:app=web", "reserved:x"], ""),
        ("world", ["reserved:world"], ""),
        ("@host", ["reserved:host"], ""),
        # The node of the pod itself, and another.
        ("172.31.1.1", ["reserved:host"], "172.31.1.1"),
        ("172.31.1.2", ["reserved:remote-node"], "172.31.1.2"),
    ],
)
def test_what_an_end_may_be(text: str, labels: list[str], address: str) -> None:
    found = sender(text)
    assert (list(found.labels), found.address, found.identity) == (labels, address, 0)


def test_an_identity_by_number() -> None:
    assert sender("300") == policy_pb2.Peer(identity=300)


def test_pods_have_the_address_of_the_family_that_is_asked_about() -> None:
    assert sender("shop/web", family=6).address == "fd00::1:2"
    assert sender("shop/web", "2001:db8::1").address == "fd00::1:2"
    with pytest.raises(BadInput, match="not of one family"):
        sender("192.0.2.1", "2001:db8::1")
    with pytest.raises(BadInput, match="not of one family"):
        sender("192.0.2.1", family=6)


def test_what_is_no_end() -> None:
    with pytest.raises(BadInput, match="expected one of @host"):
        sender("@nobody")
    with pytest.raises(CliError) as caught:
        sender("shop/missing")
    assert caught.value.reason == "POD_NOT_FOUND"
    with pytest.raises(BadInput):
        sender("nonsense")
