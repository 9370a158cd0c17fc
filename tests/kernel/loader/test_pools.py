"""Nodes that run out of addresses: other CIDRs come and go, of the node's pool and others, under traffic."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import Node, Pod, Rig, running_rig
from tests.kernel.loader.traffic import datagrams, reaches

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]

CIDRS = "10.244.0.0/24,fd00:10:244::/120"
# Of eight addresses one is the router's, the first is nobody's, and of IPv4 the last neither: that has room
# for five pods, IPv6 for six.
IPAM = [
    "--ipam-mode=multi-pool",
    "--ipam-default-pool-mask-size=29",
    "--ipam-default-pool-mask-size-ipv6=125",
    "--ipam-cidr-idle-seconds=0.2",
    "--ipam-hold-seconds=0.5",
]
FULL = 5
BLUE = "10.99.0.0/24"
OTHER_CIDRS = "10.245.0.0/24,fd00:10:245::/120"


@pytest.fixture(
    scope="module",
    params=[("tunnel", "false"), ("native", "true")],
    ids=["tunnel", "native-endpoint-routes"],
)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("rig")
    mode, endpoint_routes = request.param
    flags = [f"--routing-mode={mode}", f"--endpoint-routes={endpoint_routes}"]
    with running_rig(directory, cidrs=CIDRS, flags=flags, service_flags={"ipam": IPAM}) as made:
        yield made


@pytest.fixture(scope="module")
def client(rig: Rig) -> Pod:
    made = rig.pod(rig.nodes[1], "client", app="client")
    made.add()
    return made


@pytest.fixture(scope="module")
def full(rig: Rig) -> list[Pod]:
    """As many pods on the first node as its first CIDRs have room for."""
    made = [rig.pod(rig.nodes[0], f"full-{number}", app="web") for number in range(FULL)]
    for pod in made:
        pod.add()
    assert len(rig.nodes[0].status().pod_cidrs) == 2
    return made


def routes(node: Node) -> dict[str, str]:
    """Device by destination of Fimbria's routes."""
    found = [
        route
        for family in ("-4", "-6")
        for route in json.loads(node.namespace.command("ip", "-j", family, "route", "show", "proto", "211"))
    ]
    return {route["dst"]: route["dev"] for route in found}


def remote_device(node: Node) -> str:
    return "eth0" if "fimbria_vxlan" not in node.namespace.command("ip", "link") else "fimbria_host"


def grown(node: Node) -> list[str]:
    """The CIDRs that the node has got besides its first ones."""
    return list(node.status().pod_cidrs)[2:]


def test_a_node_that_runs_out_grows_and_shrinks(
    rig: Rig, full: list[Pod], client: Pod, eventually: Eventually
) -> None:
    first, second = rig.nodes
    old = full[0]
    with datagrams(client, old, 80) as stream:
        between = rig.pod(first, "between", app="web")
        between.add()
        assert [":" in cidr for cidr in grown(first)] == [False]
        pod = rig.pod(first, "more", app="web")
        answer = pod.add()
        cidrs = grown(first)
        assert [":" in cidr for cidr in cidrs] == [False, True]
        # When the ADD is answered the node itself routes its new CIDR.
        assert all(routes(first)[cidr] == "fimbria_host" for cidr in cidrs)
        eventually(lambda: all(routes(second).get(cidr) == remote_device(second) for cidr in cidrs))
        assert {each["gateway"] for each in answer["ips"]} == {
            each["gateway"] for each in old.call("ADD")[1]["ips"]
        }
        code, problem = pod.call("CHECK", prevResult=answer)
        assert code == 0, problem
        with echo_server(pod.namespace, 81):
            for ipv6 in (False, True):
                sources: list[Pod | Node] = [client, old, first, second]
                for source in sources:
                    eventually(partial(reaches, source, pod, 81, ipv6=ipv6))
        with echo_server(client.namespace, 82):
            for ipv6 in (False, True):
                assert reaches(pod, client, 82, ipv6=ipv6)
        # A loader that dies finds all of them again, and knows of them when nobody tells it.
        rig.services["ipam"].kill()
        first.loader.kill()
        first.loader.start()
        assert grown(first) == cidrs
        rig.services["ipam"].start()
        assert all(routes(first)[cidr] == "fimbria_host" for cidr in cidrs)
        for each in (between, pod):
            each.delete()
        eventually(lambda: not grown(first))
        for node in rig.nodes:
            eventually(lambda node=node: not routes(node).keys() & set(cidrs))  # type: ignore[misc]
    assert stream.sent and not stream.lost


def test_a_pod_of_another_pool_and_of_one_family(rig: Rig, client: Pod, eventually: Eventually) -> None:
    node = rig.nodes[0]
    rig.create_pool("blue", [BLUE], node_mask_size=29)
    pod = rig.pod(node, "blue", app="web")
    pod.annotations["fimbria.io/ip-pool"] = "blue"
    answer = pod.add()
    assert pod.ipv4.startswith("10.99.0.") and not pod.ipv6
    assert [route["dst"] for route in answer["routes"]] == ["0.0.0.0/0"]
    code, problem = pod.call("CHECK", prevResult=answer)
    assert code == 0, problem
    with echo_server(pod.namespace, 80):
        sources: list[Pod | Node] = [client, *rig.nodes]
        for source in sources:
            eventually(partial(reaches, source, pod, 80))
    with echo_server(client.namespace, 81):
        assert reaches(pod, client, 81)
    found = node.endpoint("blue")
    assert (found.ipv4, found.ipv6) == (pod.ipv4, "")
    rig.create_pool("six", ["fd00:99::/112"], node_mask_size_ipv6=125)
    six = rig.pod(node, "six", app="web")
    six.annotations["ipam.cilium.io/ip-pool"] = "six"
    answer = six.add()
    assert six.ipv6.startswith("fd00:99::") and not six.ipv4
    code, problem = six.call("CHECK", prevResult=answer)
    assert code == 0, problem
    with echo_server(six.namespace, 80):
        for source in sources:
            eventually(partial(reaches, source, six, 80, ipv6=True))
    for each in (pod, six):
        each.delete()
    eventually(lambda: not grown(node))


def test_an_unknown_pool_is_a_precise_error(rig: Rig) -> None:
    pod = rig.pod(rig.nodes[1], "nowhere")
    pod.annotations["fimbria.io/ip-pool"] = "gold"
    code, answer = pod.call("ADD")
    assert (code, answer["code"]) == (1, 102), answer
    assert "POOL_NOT_FOUND" in answer["details"] and "gold" in answer["msg"]


def test_an_address_is_not_given_again_at_once(rig: Rig) -> None:
    node = rig.nodes[1]
    before = ("", "")
    for number in range(3):
        pod = rig.pod(node, f"held-{number}")
        pod.add()
        assert pod.ipv4 != before[0] and pod.ipv6 != before[1]
        before = pod.ipv4, pod.ipv6
        pod.delete()


def test_a_node_whose_first_cidrs_were_drained_gets_others(
    rig: Rig, full: list[Pod], client: Pod, eventually: Eventually
) -> None:
    node, web = rig.nodes[1], full[0]
    client.delete()
    blue = rig.pod(node, "blue-2", app="client")
    blue.annotations["fimbria.io/ip-pool"] = "blue"
    answer = blue.add()
    before = node.status()
    rig.update_pool("default", OTHER_CIDRS.split(","))
    # What was released a moment ago is on hold, and a CIDR with such an address is not empty.
    eventually(lambda: rig.draining("default") == dict.fromkeys(CIDRS.split(","), len(full)))
    with echo_server(web.namespace, 80), echo_server(blue.namespace, 81):
        # Without IPAM a loader starts as it was, and becomes another while it runs.
        away = remote_device(node) == "fimbria_host"
        if away:
            rig.services["ipam"].kill()
        node.loader.kill()
        node.loader.start()
        if away:
            assert node.status().router_ipv4 == before.router_ipv4
            rig.services["ipam"].start()
        eventually(lambda: not set(before.pod_cidrs[:2]) & set(node.status().pod_cidrs))
        eventually(lambda: not node.status().problems)
        after = node.status()
        assert after.router_ipv4 != before.router_ipv4 and after.router_ipv6 != before.router_ipv6
        assert after.pod_cidrs[2].startswith("10.99.")
        eventually(lambda: after.router_ipv4 in node.namespace.command("ip", "addr", "show", "fimbria_host"))
        code, problem = blue.call("CHECK", prevResult=answer)
        assert code == 0, problem
        sources: list[Pod | Node] = [web, *rig.nodes]
        for source in sources:
            eventually(partial(reaches, source, blue, 81))
        assert reaches(blue, web, 80)
        late = rig.pod(node, "late", app="client")
        late.add()
        for ipv6 in (False, True):
            eventually(partial(reaches, late, web, 80, ipv6=ipv6))
