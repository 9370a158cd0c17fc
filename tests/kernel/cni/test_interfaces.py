"""Interfaces as configurations ask for them, STATUS and GC, against a real loader."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fimbria.loader.v1 import loader_pb2

from tests.kernel.cni.chain import ChainError, Network, fimbria
from tests.kernel.cni.test_chains import echoes
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import DUAL_POOL, SERVICES, Node, Rig, running_rig
from tests.kernel.netlink.namespaces import Namespace, Namespaces

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("interfaces"), nodes=1, cidrs=DUAL_POOL) as made:
        yield made


@pytest.fixture
def node(rig: Rig) -> Node:
    return rig.nodes[0]


def network(node: Node, name: str = "fimbria", version: str = "1.1.0", **members: Any) -> Network:
    return Network(node, [fimbria(node, **members)], name, version)


def addresses(result: dict[str, Any]) -> list[str]:
    return [ip["address"].split("/")[0] for ip in result["ips"]]


def endpoint(node: Node, container: str, ifname: str = "eth0") -> loader_pb2.Endpoint | None:
    found = [e for e in node.endpoints() if (e.container_id, e.ifname) == (container, ifname)]
    return found[0] if found else None


def device(pod: Namespace, name: str = "eth0") -> dict[str, Any]:
    (found,) = json.loads(pod.command("ip", "-j", "link", "show", "dev", name))
    return dict(found)


def refusal(call: Callable[[], object]) -> ChainError:
    with pytest.raises(ChainError) as caught:
        call()
    return caught.value


def setting(pod: Namespace, name: str) -> str:
    return pod.command("sysctl", "-n", name).strip()


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version_gets_its_result(node: Node, pod: Namespace, version: str) -> None:
    dns = {"nameservers": ["10.96.0.10"], "search": ["svc"], "options": ["ndots:5"], "domain": "shop"}
    made = network(node, version=version, dns=dns, mtu=1400)
    result = made.add("versions", pod)
    assert (result["cniVersion"], result["dns"]) == (version, dns)
    assert {ip.get("version") for ip in result["ips"]} == ({"4", "6"} if version < "1.0.0" else {None})
    mtus = [each.get("mtu") for each in result["interfaces"]]
    assert mtus == ([1400, 1400] if version == "1.1.0" else [None, None])
    assert [route["dst"] for route in result["routes"]] == ["0.0.0.0/0", "::/0"]
    assert device(pod)["mtu"] == 1400
    if version != "0.3.1":
        made.check("versions", pod)
    made.delete("versions", pod)


def test_two_interfaces_of_a_container_are_both_reachable(rig: Rig, node: Node, pod: Namespace) -> None:
    first, second = network(node), network(node, "second")
    one, two = first.add("both", pod), second.add("both", pod, "net1")
    assert [route["dst"] for route in one["routes"]] == ["0.0.0.0/0", "::/0"]
    assert two["routes"] == []
    (default,) = json.loads(pod.command("ip", "-j", "route", "show", "default"))
    assert default["dev"] == "eth0"
    other = rig.pod(node, "asks-both", app="client")
    other.add()
    with echo_server(pod, 80):
        for address in addresses(one) + addresses(two):
            assert echoes(other.namespace, address, 80), address
            assert echoes(node.namespace, address, 80), address
        first.check("both", pod)
        second.check("both", pod, "net1")
        first.delete("both", pod)
        second.check("both", pod, "net1")
        assert all(echoes(other.namespace, address, 80) for address in addresses(two))
        again = first.add("both", pod)
        second.delete("both", pod, "net1")
        first.check("both", pod)
        assert all(echoes(other.namespace, address, 80) for address in addresses(again))
    assert "1000:" not in pod.command("ip", "rule") + pod.command("ip", "-6", "rule")
    first.delete("both", pod)
    other.delete()


def test_the_default_route_can_be_asked_for(node: Node, pod: Namespace) -> None:
    plain = network(node, "plain", isDefaultGateway=False)
    assert plain.add("asked", pod)["routes"] == []
    chosen = network(node, "chosen", isDefaultGateway=True)
    assert len(chosen.add("asked", pod, "net1")["routes"]) == 2
    third = refusal(lambda: network(node, "third", isDefaultGateway=True).add("asked", pod, "net2"))
    assert (third.code, "isDefaultGateway" in third.msg) == (101, True)
    assert endpoint(node, "asked", "net2") is None
    plain.delete("asked", pod)
    chosen.delete("asked", pod, "net1")


def test_an_mtu_beyond_the_nodes_is_refused(node: Node, pod: Namespace) -> None:
    error = refusal(lambda: network(node, mtu=9000).add("large", pod))
    assert (error.code, "mtu: got 9000" in error.msg) == (7, True)
    error = refusal(lambda: network(node, mtu=1000).add("small", pod))
    assert (error.code, "1280" in error.msg) == (7, True)
    assert endpoint(node, "large") is None
    assert endpoint(node, "small") is None


def test_a_mac_address_is_given_when_a_runtime_asks(rig: Rig, node: Node, pod: Namespace) -> None:
    made = Network(node, [fimbria(node, capabilities={"mac": True})], version="1.1.0")
    result = made.add("named", pod, mac="02:00:5E:10:00:01")
    assert result["interfaces"][1]["mac"] == device(pod)["address"] == "02:00:5e:10:00:01"
    made.check("named", pod)
    other = rig.pod(node, "asks-named", app="client")
    other.add()
    with echo_server(pod, 80):
        assert all(echoes(other.namespace, address, 80) for address in addresses(result))
    other.delete()
    made.delete("named", pod)


def test_sysctls_are_set_in_the_pod_alone(node: Node, pod: Namespace) -> None:
    before = setting(node.namespace, "net.core.somaxconn")
    wanted = {"net.core.somaxconn": "519", "net/ipv4/conf/IFNAME/arp_filter": "1"}
    made = network(node, sysctl=wanted)
    made.add("set", pod)
    assert setting(pod, "net.core.somaxconn") == "519"
    assert setting(pod, "net.ipv4.conf.eth0.arp_filter") == "1"
    assert setting(node.namespace, "net.core.somaxconn") == before
    made.check("set", pod)
    pod.command("sysctl", "-w", "net.core.somaxconn=77")
    error = refusal(lambda: made.check("set", pod))
    assert (error.code, "net/core/somaxconn is '77'; expected '519'" in error.msg) == (105, True)
    made.delete("set", pod)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("net.ipv4.nothing_like_it", "1", "no such setting"),
        ("net.ipv4.ip_forward", "maybe", "the kernel refused 'maybe'"),
        ("kernel.hostname", "x", 'a name under "net."'),
        ("net.../../kernel.hostname", "x", 'a name under "net."'),
        ("net/../kernel/hostname", "x", 'a name under "net."'),
    ],
)
def test_a_sysctl_that_cannot_be_leaves_nothing(
    node: Node, pod: Namespace, name: str, value: str, told: str
) -> None:
    before = setting(pod, "net.core.somaxconn")
    error = refusal(lambda: network(node, sysctl={"net.core.somaxconn": "519", name: value}).add("bad", pod))
    assert error.code == 7
    assert told in error.msg
    assert setting(pod, "net.core.somaxconn") == before
    assert endpoint(node, "bad") is None
    assert "eth0" not in pod.command("ip", "link")


def test_status_is_code_50_without_the_loader_or_a_service(rig: Rig, node: Node) -> None:
    made = network(node)
    made.call("STATUS")
    for service in SERVICES:
        rig.services[service].kill()
        error = refusal(lambda: made.call("STATUS"))
        assert error.code == 50, service
        rig.services[service].start()
        becomes(lambda: not raises(lambda: made.call("STATUS")))
    node.loader.kill()
    assert refusal(lambda: made.call("STATUS")).code == 50
    node.loader.start()
    becomes(lambda: not raises(lambda: made.call("STATUS")))


def test_an_add_is_the_same_again_also_after_a_restart(node: Node, pod: Namespace) -> None:
    made = network(node, mtu=1400)
    first = made.add("again", pod)
    assert made.add("again", pod) == first
    node.loader.kill()
    node.loader.start()
    assert made.add("again", pod) == first
    made.check("again", pod)
    made.delete("again", pod)
    made.delete("again", pod)
    made.delete("again", None)


def test_gc_removes_what_the_runtime_does_not_know(rig: Rig, node: Node, namespaces: Namespaces) -> None:
    ours, theirs = network(node), network(node, "another")
    pods = {name: namespaces.make() for name in ("kept", "lost", "other")}
    ours.add("kept", pods["kept"])
    ours.add("lost", pods["lost"])
    ours.add("kept", pods["kept"], "net1")
    theirs.add("other", pods["other"])
    assert refusal(lambda: ours.call("GC")).code == 7
    assert refusal(lambda: ours.call("GC", **{"cni.dev/valid-attachments": [{"ifname": "eth0"}]})).code == 7
    assert endpoint(node, "lost") is not None
    valid = [{"containerID": "kept", "ifname": "eth0"}]
    ours.call("GC", **{"cni.dev/valid-attachments": valid})
    left = {(e.container_id, e.ifname) for e in node.endpoints()}
    assert left == {("kept", "eth0"), ("other", "eth0")}
    assert "eth0" not in pods["lost"].command("ip", "link")
    becomes(lambda: rig.owners() >= {"kept/eth0", "other/eth0"} and "lost/eth0" not in rig.owners())
    ours.call("GC", **{"cni.dev/attachments": valid})
    ours.call("GC", **{"cni.dev/valid-attachments": []})
    theirs.delete("other", pods["other"])
    assert node.endpoints() == []


def test_gc_does_the_dels_that_wait(node: Node, pod: Namespace) -> None:
    made = network(node)
    made.add("owed", pod)
    node.loader.kill()
    made.delete("owed", pod)
    assert os.listdir(node.directory / "deletes")
    node.loader.start()
    made.call("GC", **{"cni.dev/valid-attachments": []})
    assert os.listdir(node.directory / "deletes") == []
    assert endpoint(node, "owed") is None


def test_a_hundred_adds_at_once(rig: Rig, node: Node, namespaces: Namespaces) -> None:
    made = network(node)
    pods = {f"many-{number}": namespaces.make() for number in range(100)}
    with ThreadPoolExecutor(100) as pool:
        results = list(pool.map(lambda item: made.add(*item), pods.items()))
        assert len({address for result in results for address in addresses(result)}) == 200
        assert len(node.endpoints()) == 100
        list(pool.map(lambda item: made.delete(*item), pods.items()))
    assert node.endpoints() == []
    assert node.links() == set()


def raises(call: Callable[[], object]) -> bool:
    try:
        call()
    except ChainError:
        return True
    return False


def becomes(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
