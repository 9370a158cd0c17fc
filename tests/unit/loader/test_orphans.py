"""What belongs to nobody, what is only on its way, and what nobody may judge."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from services.loader.endpoints.endpoint import Phase
from services.loader.endpoints.restore import Restored
from services.loader.interfaces import StrayPin
from services.loader.policy.entries import EntryKey, EntryValue
from tests.unit.loader.node_under_test import NodeUnderTest, add, only, request
from tests.unit.loader.waiting import until


async def names(node: NodeUnderTest, *, remove: bool = False) -> list[tuple[str, str]]:
    found, skipped = await node.orphans.collect(remove=remove)
    assert skipped == ""
    assert all(each.removed == remove and not each.error for each in found)
    return [(each.orphan.kind.value, each.orphan.name) for each in found]


async def test_a_node_in_order_has_no_orphans(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    assert await names(node) == []


async def test_all_kinds_are_found_and_removed(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    record = only(node).record
    node.links.devices["lxcffffffffffff"] = 77
    node.links.stray_routes = [(77, "10.0.0.77"), (record.ifindex, record.ipv4)]
    node.kernel.attach(replace(record, id=99, ifindex=77, ipv4="10.0.0.77"))
    node.kernel.rows[88] = node.kernel.rows[record.subject]
    node.kernel.entries[99] = {EntryKey(0, 300, 6, 80, 16): EntryValue(False)}
    node.kernel.pins = [StrayPin("pin", "progs/ghost", "")]
    node.services.owners["ghost/eth0"] = "10.0.0.200"
    node.services.owners["somebody-else"] = "10.0.0.201"
    node.services.published["10.0.0.200/32"] = 300
    wanted = {
        ("device", "lxcffffffffffff"),
        ("route", "10.0.0.77"),
        ("endpoint-row", "99"),
        ("subject", "88"),
        ("policy-entries", "99"),
        ("pin", "progs/ghost"),
        ("address", "10.0.0.200"),
        ("ipcache-entry", "10.0.0.200/32"),
    }
    assert set(await names(node)) == wanted
    assert set(await names(node)) == wanted, "telling of them removes nothing"
    assert set(await names(node, remove=True)) == wanted
    assert await names(node) == []
    assert node.links.devices == {record.spec.host_device: record.ifindex}
    assert node.services.owners.keys() == {"c1/eth0", "somebody-else"}
    assert node.services.published == {"10.0.0.2/32": 256}
    assert node.kernel.endpoints.keys() == {record.ifindex}


async def test_what_is_being_made_or_removed_is_no_orphan(node: NodeUnderTest) -> None:
    node.links.gate.clear()
    adding = asyncio.create_task(node.cni.add(add()))
    await until(lambda: bool(node.services.published))
    assert await names(node) == []
    node.links.gate.set()
    await adding
    node.services.down = True
    await node.cni.delete(request("DEL"))
    node.services.down = False
    assert await names(node) == []
    assert "c1/eth0" in node.releases


async def test_without_the_services_the_rest_is_looked_at(node: NodeUnderTest) -> None:
    node.links.devices["lxcffffffffffff"] = 77
    node.services.down = True
    found, skipped = await node.orphans.collect(remove=False)
    assert [each.orphan.name for each in found] == ["lxcffffffffffff"]
    assert "addresses were not looked at" in skipped
    assert "ipcache entries were not looked at" in skipped


async def test_what_may_belong_to_a_pod_whose_record_is_damaged_is_left_alone(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    (node.directory / "endpoints" / f"{only(node).record.id}.json").write_text("{", encoding="utf-8")
    assert await node.restart() == Restored(0, 0, 0)
    node.kernel.pins = [StrayPin("pin", "progs/ghost", "")]
    found, skipped = await node.orphans.collect(remove=True)
    assert [each.orphan.kind.value for each in found] == ["pin"]
    assert "cannot be read" in skipped
    assert len(node.links.devices) == len(node.kernel.endpoints) == len(node.services.owners) == 1


async def test_what_cannot_be_removed_says_why(node: NodeUnderTest) -> None:
    node.links.devices["lxcffffffffffff"] = 77
    node.links.fail = {"delete_endpoint_link"}
    ((found,), _) = await node.orphans.collect(remove=True)
    assert not found.removed
    assert "refused" in found.error


async def test_after_a_reboot_an_equal_interface_index_says_nothing(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    before = only(node).record
    assert (await node.restart()).kept == 1
    node.boot = "boot-2"
    after = await node.restart()
    assert (after.kept, after.removed) == (0, 1)
    assert await node.restart() == Restored(0, 0, 0)
    await node.releases.settle("c1/eth0")
    assert node.services.owners == {}
    assert node.services.published == {}
    assert node.kernel.endpoints == {}
    await node.cni.add(add())
    assert only(node).record.id > before.id


async def test_a_start_that_died_before_it_was_through_finds_the_reboot_again(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    assert (await node.restart()).kept == 1
    node.boot = "boot-2"
    node.kernel.fail = {"detach"}
    assert (await node.restart()).removed == 1
    assert only(node).record.phase is Phase.DELETING
    node.kernel.fail = set()
    assert (await node.restart()).removed == 1
    assert len(node.registry) == 0
