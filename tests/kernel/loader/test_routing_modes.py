"""Nodes of both families in each routing mode: pods, policies, restarts, and a change of the mode."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import pytest
from fimbria.loader.v1 import loader_pb2

from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import DUAL_POOL, Node, Pod, Rig, running_rig
from tests.kernel.loader.traffic import connect, reaches, talks

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]

ONLY_CLIENT = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""


def flags(mode: str, endpoint_routes: bool) -> list[str]:
    return [f"--routing-mode={mode}", f"--endpoint-routes={str(endpoint_routes).lower()}"]


@pytest.fixture(
    scope="module",
    params=list(product(("tunnel", "native"), (False, True))),
    ids=lambda param: param[0] + ("-endpoint-routes" if param[1] else ""),
)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("rig"), cidrs=DUAL_POOL, flags=flags(*request.param)) as made:
        yield made


@pytest.fixture(scope="module")
def pods(rig: Rig) -> Iterator[dict[str, Pod]]:
    """web and near on the first node, client and stranger on the second."""
    made = rig.four_pods()
    with echo_server(made["web"].namespace, 80), echo_server(made["web"].namespace, 81):
        deadline = time.monotonic() + 10
        prefixes = {prefix for pod in made.values() for prefix in (f"{pod.ipv4}/32", f"{pod.ipv6}/128")}
        while any(node.ipcache().keys() < prefixes for node in rig.nodes):
            assert time.monotonic() < deadline, "nodes do not know the pods"
        yield made


def status(node: Node) -> loader_pb2.DatapathStatus:
    return node.status()


def native(node: Node) -> bool:
    return status(node).routing_mode == loader_pb2.ROUTING_MODE_NATIVE


def own_routes(node: Node) -> dict[str, str]:
    """Device by destination of Fimbria's routes."""
    found = [
        *json.loads(node.namespace.command("ip", "-j", "-4", "route", "show", "proto", "211")),
        *json.loads(node.namespace.command("ip", "-j", "-6", "route", "show", "proto", "211")),
    ]
    return {route["dst"]: route["dev"] for route in found}


def test_the_node_says_how_it_is_set_up(rig: Rig, pods: dict[str, Pod]) -> None:
    node = rig.nodes[0]
    said = status(node)
    assert (said.node_ipv4, said.node_ipv6) == (node.ipv4, node.ipv6)
    assert len(said.pod_cidrs) == 2 and said.router_ipv6
    assert list(said.devices) == ["eth0"]
    assert said.masquerade and said.host_routing
    assert said.policy_enforcement == loader_pb2.POLICY_ENFORCEMENT_DEFAULT
    (found,) = [each for each in node.endpoints() if each.pod_name == "web"]
    assert (found.ipv4, found.ipv6, found.rate) == (pods["web"].ipv4, pods["web"].ipv6, 0)


@pytest.mark.parametrize("ipv6", [False, True])
def test_pods_reach_each_other(pods: dict[str, Pod], eventually: Eventually, ipv6: bool) -> None:
    for name in ("near", "client", "stranger"):
        eventually(partial(reaches, pods[name], pods["web"], 80, ipv6=ipv6))


@pytest.mark.parametrize("ipv6", [False, True])
def test_the_nodes_reach_a_pod(rig: Rig, pods: dict[str, Pod], eventually: Eventually, ipv6: bool) -> None:
    for node in rig.nodes:
        eventually(partial(reaches, node, pods["web"], 80, ipv6=ipv6))


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_policy_decides(rig: Rig, pods: dict[str, Pod], ipv6: bool) -> None:
    web = pods["web"]
    with connect(pods["stranger"], web, 80, ipv6=ipv6) as before:
        assert talks(before)
        rig.apply(ONLY_CLIENT)
        try:
            assert not talks(before), "an established connection is judged again"
            assert reaches(pods["client"], web, 80, ipv6=ipv6)
            assert reaches(pods["near"], web, 80, ipv6=ipv6)
            assert not reaches(pods["client"], web, 81, ipv6=ipv6)
            assert not reaches(pods["stranger"], web, 80, ipv6=ipv6)
        finally:
            rig.remove_policy(ONLY_CLIENT)
    assert reaches(pods["stranger"], web, 80, ipv6=ipv6)


def test_the_routes_are_those_of_the_mode(rig: Rig, pods: dict[str, Pod]) -> None:
    first, second = rig.nodes
    remote = {cidr: own_routes(first)[cidr] for cidr in status(second).pod_cidrs}
    assert set(remote.values()) == {"eth0" if native(first) else "fimbria_host"}
    assert ("fimbria_vxlan" in first.namespace.command("ip", "link")) != native(first)
    to_pods = {dst for dst, device in own_routes(first).items() if device.startswith("lxc")}
    here = {address for name in ("web", "near") for address in (pods[name].ipv4, pods[name].ipv6)}
    assert to_pods == (here if status(first).endpoint_routes else set())
    tunnel = "" if native(first) else second.ipv4
    for address in (f"{pods['client'].ipv4}/32", f"{pods['client'].ipv6}/128"):
        assert first.ipcache()[address].tunnel_endpoint == tunnel


def test_a_check_is_content_and_notices_a_missing_route(rig: Rig, pods: dict[str, Pod]) -> None:
    web = pods["web"]
    code, answer = web.call("ADD")
    assert code == 0
    assert [each["address"] for each in answer["ips"]] == [f"{web.ipv4}/32", f"{web.ipv6}/128"]
    code, problem = web.call("CHECK", prevResult=answer)
    assert code == 0, problem
    if status(web.node).endpoint_routes:
        web.node.namespace.command("ip", "-6", "route", "del", web.ipv6)
        code, problem = web.call("CHECK", prevResult=answer)
        assert (code, problem["code"]) == (1, 105)
        assert f"no route to {web.ipv6}" in problem["msg"]
        # A restart mends it.
        web.node.loader.kill()
        web.node.loader.start()
        code, problem = web.call("CHECK", prevResult=answer)
        assert code == 0, problem


@pytest.mark.parametrize("ipv6", [False, True])
def test_connections_outlive_the_loader(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually, ipv6: bool
) -> None:
    with connect(pods["client"], pods["web"], 80, ipv6=ipv6) as connection:
        before = own_routes(rig.nodes[0])
        for node in rig.nodes:
            node.loader.kill()
        assert talks(connection)
        for node in rig.nodes:
            node.loader.start()
        assert talks(connection)
        assert own_routes(rig.nodes[0]) == before
    eventually(partial(reaches, pods["stranger"], pods["web"], 80, ipv6=ipv6))


def test_a_deleted_pod_leaves_nothing(rig: Rig, pods: dict[str, Pod], eventually: Eventually) -> None:
    node = rig.nodes[0]
    links, routes = node.links(), own_routes(node)
    pod = rig.pod(node, "short", app="short")
    pod.add()
    prefixes = {f"{pod.ipv4}/32", f"{pod.ipv6}/128"}
    # The answer to an ADD does not wait until the cluster has been told.
    eventually(lambda: prefixes <= rig.published().keys())
    pod.delete()
    assert (node.links(), own_routes(node)) == (links, routes)
    eventually(lambda: not prefixes & rig.published().keys())
    assert f"{pod.container_id}/eth0" not in rig.owners()
    for each in rig.nodes:
        eventually(lambda each=each: not prefixes & each.ipcache().keys())  # type: ignore[misc]


def test_a_rate_arrives_in_the_datapath(rig: Rig, pods: dict[str, Pod]) -> None:
    pod = rig.pod(rig.nodes[0], "slow", app="slow")
    pod.add(runtimeConfig={"bandwidth": {"egressRate": 80_000_000, "egressBurst": 80_000_000}})
    (found,) = [each for each in pod.node.endpoints() if each.pod_name == "slow"]
    assert found.rate == 10_000_000
    assert reaches(pod, pods["web"], 80)
    pod.delete()
    code, problem = pod.call("ADD", runtimeConfig={"bandwidth": {"egressRate": -1}})
    assert (code, problem["code"]) == (1, 7)


def test_the_mode_can_change_between_two_starts(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    """Last in the module: afterwards the nodes are in the other mode."""
    was = native(rig.nodes[0])
    other = flags("tunnel" if was else "native", not status(rig.nodes[0]).endpoint_routes)
    for node in rig.nodes:
        node.loader.kill()
        # A later flag wins over an earlier one.
        node.loader.arguments += other
        node.loader.start()
    assert native(rig.nodes[0]) != was
    for ipv6 in (False, True):
        eventually(partial(reaches, pods["client"], pods["web"], 80, ipv6=ipv6))
        eventually(partial(reaches, pods["near"], pods["web"], 80, ipv6=ipv6))
    test_the_routes_are_those_of_the_mode(rig, pods)
