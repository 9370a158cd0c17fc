"""A pod with several interfaces, in the kernel: routes, rules, and what is left when one goes."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from services.chassis.errors import FailedPrecondition
from services.loader.netlink.links import (
    LinkSpec,
    check_endpoint_link,
    create_endpoint_link,
    delete_endpoint_link,
    endpoint_device,
    forget_pod_rules,
)
from services.loader.netlink.node_routes import ROUTE_PROTOCOL
from services.loader.netlink.source_routes import RULE_PROTOCOL, source_table
from tests.kernel.netlink.namespaces import Namespace

pytestmark = pytest.mark.kernel


def spec_for(pod: Namespace, ifname: str, number: int) -> LinkSpec:
    return LinkSpec(
        host_name=endpoint_device("c1", ifname),
        netns_fd=pod.fd,
        ifname=ifname,
        address=IPv4Address("10.1.0.0") + number,
        router=IPv4Address("10.1.0.1"),
        mtu=1400,
        route_mtu=1350,
        address6=IPv6Address("fd00:10:244::") + number,
        router6=IPv6Address("fd00:10:244::1"),
    )


def shown(namespace: Namespace, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(namespace.command("ip", "-json", *arguments) or "[]")
    return found


def way(pod: Namespace, destination: str, source: str = "") -> str:
    """The device that a packet leaves by."""
    (found,) = shown(pod, "route", "get", destination, *(["from", source] if source else []))
    return str(found["dev"])


def sources(pod: Namespace) -> list[str]:
    rules = shown(pod, "rule") + shown(pod, "-6", "rule")
    return [rule["src"] for rule in rules if rule["src"] != "all"]


def test_rules_and_routes_are_marked_as_ours() -> None:
    assert RULE_PROTOCOL == ROUTE_PROTOCOL


def test_the_second_interface_leaves_the_default_route_and_answers_by_itself(
    node: Namespace, pod: Namespace
) -> None:
    first, second = spec_for(pod, "eth0", 7), spec_for(pod, "net1", 8)
    made = node.run(lambda: create_endpoint_link(first))
    further = node.run(lambda: create_endpoint_link(second))
    assert (made.default_routes, further.default_routes) == ((4, 6), ())
    for family, elsewhere in (("-4", "192.0.2.1"), ("-6", "2001:db8::1")):
        defaults = [route["dev"] for route in shown(pod, family, "route") if route["dst"] == "default"]
        assert defaults == ["eth0"]
        assert way(pod, elsewhere) == "eth0"
    for specification, name in ((first, "eth0"), (second, "net1")):
        assert way(pod, "192.0.2.1", str(specification.address)) == name
        assert way(pod, "2001:db8::1", str(specification.address6)) == name
        assert way(pod, "10.1.0.1", str(specification.address)) == name
    assert node.run(lambda: check_endpoint_link(first, made.default_routes)) == []
    assert node.run(lambda: check_endpoint_link(second, further.default_routes)) == []
    routed = shown(pod, "route", "show", "table", str(source_table(further.pod_ifindex)))
    assert [route["dst"] for route in routed] == ["default", "10.1.0.1"]
    assert routed[0]["metrics"] == [{"mtu": 1350}]


def test_each_goes_without_the_other(node: Namespace, pod: Namespace) -> None:
    first, second = spec_for(pod, "eth0", 7), spec_for(pod, "net1", 8)
    node.run(lambda: create_endpoint_link(first))
    node.run(lambda: create_endpoint_link(second))
    node.run(lambda: delete_endpoint_link(first.host_name))
    forget_pod_rules(pod.fd)
    assert node.run(lambda: check_endpoint_link(second, ())) == []
    assert way(pod, "192.0.2.1", str(second.address)) == "net1"
    node.run(lambda: create_endpoint_link(first))
    node.run(lambda: delete_endpoint_link(second.host_name))
    assert sources(pod) == [str(second.address), str(second.address6)]
    forget_pod_rules(pod.fd)
    assert sources(pod) == []
    assert node.run(lambda: check_endpoint_link(first)) == []


def test_a_further_interface_may_be_asked_for(node: Namespace, pod: Namespace) -> None:
    further, first = (
        replace(spec_for(pod, "net1", 8), default_route=False),
        replace(spec_for(pod, "eth0", 7), default_route=True),
    )
    assert node.run(lambda: create_endpoint_link(further)).default_routes == ()
    assert [route["dst"] for route in shown(pod, "route")] == ["10.1.0.1"]
    assert node.run(lambda: create_endpoint_link(first)).default_routes == (4, 6)
    assert way(pod, "192.0.2.1") == "eth0"


def test_a_family_that_another_plugin_routes_is_left_to_it(node: Namespace, pod: Namespace) -> None:
    pod.command("ip", "link", "add", "net0", "type", "veth", "peer", "name", "other")
    pod.command("ip", "link", "set", "net0", "up")
    pod.command("ip", "route", "add", "default", "dev", "net0", "metric", "50")
    spec = spec_for(pod, "eth0", 7)
    made = node.run(lambda: create_endpoint_link(spec))
    assert made.default_routes == (6,)
    assert way(pod, "192.0.2.1") == "net0"
    assert way(pod, "192.0.2.1", str(spec.address)) == "eth0"
    assert node.run(lambda: check_endpoint_link(spec, (6,))) == []


def test_a_default_route_is_not_taken_from_another_whatever_its_metric(
    node: Namespace, pod: Namespace
) -> None:
    pod.command("ip", "link", "add", "net0", "type", "veth", "peer", "name", "other")
    pod.command("ip", "link", "set", "net0", "up")
    pod.command("ip", "route", "add", "default", "dev", "net0", "metric", "50")
    spec = replace(spec_for(pod, "eth0", 7), default_route=True)
    with pytest.raises(FailedPrecondition, match="isDefaultGateway: got true") as caught:
        node.run(lambda: create_endpoint_link(spec))
    assert (caught.value.reason, caught.value.metadata["family"]) == ("ROUTE_TAKEN", "4")
    assert "eth0" not in pod.command("ip", "link")
    assert sources(pod) == []


def test_a_check_tells_of_a_rule_and_a_route_that_are_gone(node: Namespace, pod: Namespace) -> None:
    spec = replace(spec_for(pod, "net1", 8), default_route=False)
    made = node.run(lambda: create_endpoint_link(spec))
    table = str(source_table(made.pod_ifindex))
    pod.command("ip", "rule", "del", "from", str(spec.address))
    pod.command("ip", "-6", "route", "del", "default", "table", table)
    problems = node.run(lambda: check_endpoint_link(spec, ()))
    assert problems == [
        f"the pod has no rule from {spec.address} to table {table}",
        f"the pod's table {table} has no default route via {spec.router6}",
    ]


def test_rules_of_others_stay(node: Namespace, pod: Namespace) -> None:
    pod.command("ip", "rule", "add", "from", "192.0.2.9", "lookup", "1000077")
    forget_pod_rules(pod.fd)
    assert sources(pod) == ["192.0.2.9"]
