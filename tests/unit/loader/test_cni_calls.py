"""The plugin's calls: what of a request becomes an endpoint, and what a runtime is told."""

from __future__ import annotations

from dataclasses import replace

from services.loader.clients import workload_of
from services.loader.cni.interface_settings import InterfaceSettings
from services.loader.endpoints.cni_calls import has_rules, result_of, spec_of
from services.loader.endpoints.health import DATAPATH
from tests.unit.loader.node_under_test import NodeUnderTest, add, only, request


async def test_what_a_configuration_says_of_the_interface_is_recorded(node: NodeUnderTest) -> None:
    settings = InterfaceSettings(
        mtu=1400, mac="02:00:00:00:00:07", default_route=False, dns={"search": ["a"]}
    )
    asked = replace(add(), interface=settings, config={"name": "second"})
    result = await node.cni.add(asked)
    spec = only(node).record.spec
    assert (spec.network, spec.mtu, spec.mac, spec.default_route) == ("second", 1400, settings.mac, False)
    assert result.dns == {"search": ["a"]}
    assert spec == spec_of(asked)


async def test_attachments_are_told_by_network(node: NodeUnderTest) -> None:
    await node.cni.add(replace(add("c1"), config={"name": "one"}))
    await node.cni.add(replace(add("c2"), config={"name": "two"}))
    await node.cni.add(replace(add("c3"), config={}))
    assert node.cni.attachments("one") == [("c1", "eth0")]
    assert node.cni.attachments("two") == [("c2", "eth0")]
    assert node.cni.attachments("three") == []
    await node.cni.delete(request("DEL"))
    assert node.cni.attachments("one") == []


async def test_a_node_is_limited_while_an_endpoint_is_degraded(node: NodeUnderTest) -> None:
    assert not node.cni.limited()
    await node.cni.add(add())
    assert not node.cni.limited()
    node.manager._health.failed(only(node).record.id, DATAPATH, "the kernel refused")
    assert node.cni.limited()


async def test_only_default_routes_that_are_there_are_told(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    record = replace(only(node).record, ipv6="fd00::2", router_ipv6="fd00::1")
    assert [str(route.dst) for route in result_of(record).routes] == ["0.0.0.0/0", "::/0"]
    assert not has_rules(record)
    further = replace(record, default_routes=(6,))
    assert [str(route.dst) for route in result_of(further).routes] == ["::/0"]
    assert has_rules(further)
    assert not has_rules(replace(further, ipv4="", router_ipv4=""))


async def test_ipam_is_told_for_whom_an_address_is(node: NodeUnderTest) -> None:
    asked = add()
    annotations = {"fimbria.io/ip-pool": "blue", "kubectl.kubernetes.io/last-applied": "{}"}
    pod = replace(
        asked.pod, annotations=annotations, namespace_labels={"team": "a"}, namespace_annotations={"x": "y"}
    )
    await node.cni.add(replace(asked, pod=pod))
    told = node.services.workloads["c1/eth0"]
    assert (told.labels, told.annotations) == ({"app": "web"}, annotations)
    message = workload_of(replace(only(node).record.spec, workload=told))
    assert (message.namespace, message.name, dict(message.labels)) == ("shop", "web", {"app": "web"})
    assert dict(message.annotations) == {"fimbria.io/ip-pool": "blue"}, "only what means something to IPAM"
    assert dict(message.namespace_labels) == {"team": "a"}
    assert dict(message.namespace_annotations) == {}


async def test_a_release_is_of_the_allocation_that_the_endpoint_had(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    allocated = only(node).record.allocated_ns
    assert allocated == node.services.allocated["c1/eth0"]
    # Released behind the loader's back, and given to the same owner again: that one is another's.
    node.services.allocated["c1/eth0"] = allocated + 1
    await node.cni.delete(request("DEL"))
    assert "c1/eth0" in node.services.owners
    assert "c1/eth0" not in node.releases
