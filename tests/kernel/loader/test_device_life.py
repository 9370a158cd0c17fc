"""Devices that go, come back as others, or lose their programs under a running loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from fimbria.loader.v1 import loader_pb2, loader_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import ONLY_CLIENT, Node, Pod, Rig
from tests.kernel.loader.traffic import reaches

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def pods(rig: Rig) -> Iterator[dict[str, Pod]]:
    made = rig.four_pods()
    with echo_server(made["web"].namespace, 80):
        rig.apply(ONLY_CLIENT)
        yield made
        rig.remove_policy(ONLY_CLIENT)


def enforced(pods: dict[str, Pod]) -> bool:
    """From the same node and from the other: who may gets through, and who may not does not."""
    return (
        reaches(pods["near"], pods["web"], 80)
        and reaches(pods["client"], pods["web"], 80)
        and not reaches(pods["stranger"], pods["web"], 80, seconds=0.2)
    )


def filters(node: Node, device: str) -> str:
    return "".join(
        node.namespace.command("tc", "filter", "show", "dev", device, where)
        for where in ("ingress", "egress")
    )


@pytest.mark.parametrize("side", ["node", "pod"])
def test_an_endpoint_whose_device_vanishes_is_let_go_of(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually, side: str
) -> None:
    node = rig.nodes[0]
    pod = rig.pod(node, f"vanishing-{side}", app="vanishing")
    pod.add()
    device = node.endpoint(pod.name).host_device
    eventually(lambda: f"{pod.ipv4}/32" in rig.published())
    if side == "node":
        node.namespace.command("ip", "link", "delete", device)
    else:
        pod.namespace.command("ip", "link", "delete", "eth0")
    eventually(lambda: pod.name not in {each.pod_name for each in node.endpoints()})
    eventually(lambda: f"{pod.container_id}/eth0" not in rig.owners())
    eventually(lambda: f"{pod.ipv4}/32" not in rig.published())
    eventually(lambda: f"{pod.ipv4}/32" not in rig.nodes[1].ipcache())
    maps = {entry.name: entry.entries for entry in node.status().maps}
    assert maps["endpoint_dev"] == maps["endpoint_ip4"] == len(node.endpoints())
    pod.delete()
    pod.add()
    pod.delete()


def test_a_device_that_lost_its_filters_gets_them_back(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    node = rig.nodes[0]
    device = node.endpoint("web").host_device
    before = filters(node, device)
    assert "direct-action" in before
    node.namespace.command("tc", "qdisc", "delete", "dev", device, "clsact")
    eventually(lambda: filters(node, device).count("direct-action") == before.count("direct-action"))
    eventually(lambda: enforced(pods))
    newest = node.endpoint("web").regenerations[0]
    assert newest.cause == "device"
    assert newest.state == loader_pb2.REGENERATION_STATE_DONE
    assert newest.level == loader_pb2.REGENERATION_LEVEL_RELOAD


@pytest.mark.parametrize("device", ["fimbria_host", "fimbria_vxlan"])
def test_a_device_of_the_node_that_vanishes_is_made_again(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually, device: str
) -> None:
    node = rig.nodes[0]
    eventually(lambda: enforced(pods))
    node.namespace.command("ip", "link", "delete", device)
    eventually(lambda: device in node.namespace.command("ip", "-br", "link"))
    eventually(lambda: enforced(pods))
    eventually(lambda: not node.status().problems)


def test_a_network_card_that_is_replaced_is_taken_over(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    node = rig.nodes[0]
    eventually(lambda: enforced(pods))
    node.namespace.command("ip", "link", "delete", "eth0")
    eventually(lambda: any("172.31.1.1" in problem for problem in node.status().problems))
    rig.underlay(node, "eth1")
    # The other node still sends to the old card's MAC address for a while.
    rig.nodes[1].namespace.command("ip", "neighbour", "flush", "all")
    eventually(lambda: list(node.status().devices) == ["eth1"])
    eventually(lambda: enforced(pods))
    eventually(lambda: not node.status().problems)


def test_readiness_is_not_liveness(rig: Rig, eventually: Eventually) -> None:
    node = rig.nodes[1]
    for service in rig.services.values():
        service.kill()
    try:
        node.loader.kill()
        node.loader.start()
        with grpc.insecure_channel(node.target) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)

            def status(name: str) -> int:
                answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
                return int(answer.status)

            serving, not_serving = (
                health_pb2.HealthCheckResponse.SERVING,
                health_pb2.HealthCheckResponse.NOT_SERVING,
            )
            assert status("") == serving
            assert status("fimbria.loader.v1.readiness") == not_serving
            assert not node.status().synchronized
            eventually(lambda: len(node.status().problems) == 3)
            for service in rig.services.values():
                service.start()
            request = health_pb2.HealthCheckRequest(service="fimbria.loader.v1.readiness")
            for answer in health.Watch(request, timeout=30):
                if answer.status == serving:
                    break
            assert node.status().synchronized
            assert all(watch.synchronized for watch in node.status().watches)
    finally:
        for service in rig.services.values():
            if service.running is None or service.running.poll() is not None:
                service.start()


def test_an_operator_regenerates_at_each_level(rig: Rig, pods: dict[str, Pod]) -> None:
    node = rig.nodes[0]
    number = node.endpoint("web").id
    with grpc.insecure_channel(node.target) as channel:
        stub = loader_pb2_grpc.EndpointServiceStub(channel)
        for level in (
            loader_pb2.REGENERATION_LEVEL_POLICY,
            loader_pb2.REGENERATION_LEVEL_RELOAD,
            loader_pb2.REGENERATION_LEVEL_REBUILD,
        ):
            request = loader_pb2.RegenerateEndpointRequest(id=number, level=level)
            answer = stub.RegenerateEndpoint(request, timeout=60)
            newest = next(each for each in answer.regenerations if each.cause == "operator")
            assert newest.level == level
            assert newest.state == loader_pb2.REGENERATION_STATE_DONE
            assert len(newest.trace_id) == 32
            assert newest.attempt == 1
    assert enforced(pods)
    assert len(node.endpoint("web").regenerations) <= 16
