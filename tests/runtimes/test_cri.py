"""Pods that containerd makes for a kubelet: addresses, policy, and what is left when they are gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.kernel.loader.rig import Rig
from tests.runtimes import image
from tests.runtimes.containerd import PORT
from tests.runtimes.cri import Cri, Sandbox
from tests.runtimes.footprint import nothing_left
from tests.runtimes.machine import Machine

pytestmark = pytest.mark.cluster

AT_ONCE = 50

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: http}]}]
"""


@pytest.fixture(autouse=True)
def all_gone(rig: Rig, machine: Machine, cri: Cri) -> Iterator[None]:
    with nothing_left(rig, machine):
        yield
        for sandbox in cri.sandboxes():
            cri.remove(sandbox)


def serve(cri: Cri, name: str, labels: str = "", ports: str = "") -> tuple[Sandbox, str]:
    """A pod that says its name, and its container."""
    annotations = {"io.fimbria.labels": labels, "io.fimbria.ports": ports}
    sandbox = cri.run(name, annotations=annotations)
    return sandbox, cri.start(sandbox, name, "serve", PORT, name)


def ask(cri: Cri, container: str, address: str) -> str:
    return cri.exec(container, image.PROGRAM, "ask", address, PORT)[1]


def test_pods_get_addresses_and_talk(rig: Rig, cri: Cri) -> None:
    web, in_web = serve(cri, "web")
    client, in_client = serve(cri, "client")
    assert ask(cri, in_client, web.ip) == "web"
    assert ask(cri, in_web, client.ip) == "client"
    (node,) = rig.nodes
    assert {(each.pod_namespace, each.pod_name, each.ipv4) for each in node.endpoints()} == {
        ("shop", "web", web.ip),
        ("shop", "client", client.ip),
    }


def test_policy_counts_by_labels_and_ports_in_annotations(rig: Rig, cri: Cri) -> None:
    web, _ = serve(cri, "web", "app=web", f"http:{PORT}/TCP")
    _, client = serve(cri, "client", "app=client")
    _, stranger = serve(cri, "stranger", "app=stranger")
    assert ask(cri, stranger, web.ip) == "web"
    rig.apply(POLICY)
    try:
        assert ask(cri, client, web.ip) == "web"
        assert ask(cri, stranger, web.ip) == ""
    finally:
        rig.remove_policy(POLICY)


def test_what_a_pod_may_send_is_limited_by_its_annotation(rig: Rig, cri: Cri) -> None:
    """As the kubelet hands it on; containerd makes a rate of it."""
    (node,) = rig.nodes
    cri.run(
        "web", annotations={"kubernetes.io/egress-bandwidth": "10M"}, port_mappings=[{"container_port": 80}]
    )
    record = json.loads(next((node.directory / "state" / "endpoints").glob("*.json")).read_text())
    assert record["spec"]["rate"] == 10_000_000 // 8


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"port_mappings": [{"container_port": 80, "host_port": 8080}]}, "runtimeConfig.portMappings"),
        ({"annotations": {"kubernetes.io/ingress-bandwidth": "1M"}}, "runtimeConfig.bandwidth.ingressRate"),
        ({"annotations": {"io.fimbria.labels": "app"}}, "io.fimbria.labels: got 'app'"),
    ],
)
def test_what_the_network_cannot_do_is_refused(cri: Cri, more: dict[str, Any], said: str) -> None:
    with pytest.raises(grpc.RpcError, match=said):
        cri.run("web", **more)


def test_fifty_at_once_get_fifty_addresses(cri: Cri) -> None:
    with ThreadPoolExecutor(AT_ONCE) as workers:
        made = list(workers.map(lambda number: cri.run(f"p{number}"), range(AT_ONCE)))
        assert len({sandbox.ip for sandbox in made}) == AT_ONCE
        list(workers.map(lambda sandbox: cri.remove(sandbox.id), made))
