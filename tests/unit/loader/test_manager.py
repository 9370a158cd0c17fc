"""An endpoint's life, with everything around it a fake."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from services.chassis.errors import AlreadyExists, FimbriaError, Internal, NotFound, Unavailable
from services.chassis.labels import LabelSet
from services.loader.cni.errors import CniError
from services.loader.endpoints.endpoint import Phase, State
from services.loader.endpoints.records import StateDirectory
from services.loader.endpoints.regeneration import Level
from services.loader.endpoints.restore import Restored
from services.loader.ipcache.table import Meaning
from tests.unit.loader.node_under_test import NodeUnderTest, add, only, request
from tests.unit.loader.waiting import until


async def test_an_add_makes_everything_and_opens_the_device_last(node: NodeUnderTest) -> None:
    result = await node.cni.add(add())
    endpoint = only(node)
    record = endpoint.record
    assert str(result.ips[0].address) == "10.0.0.2/32"
    assert endpoint.status.state is State.READY
    assert node.links.up == {record.spec.host_device}
    assert node.kernel.endpoints[record.ifindex].subject == record.subject
    assert node.kernel.rows.keys() == {record.subject}
    assert node.kernel.addresses == {"10.0.0.2/32": Meaning(256)}
    assert node.services.published == {"10.0.0.2/32": 256}
    assert StateDirectory(node.directory).load_endpoints() == [record]
    assert node.kernel.writes.index("put_subject") < node.kernel.writes.index("attach")


async def test_the_same_add_again_returns_the_same_endpoint(node: NodeUnderTest) -> None:
    first = await node.cni.add(add())
    assert await node.cni.add(add()) == first
    assert len(node.registry) == 1
    with pytest.raises(AlreadyExists):
        await node.cni.add(add(netns="/run/netns/other"))


async def test_an_add_whose_device_went_without_a_delete_makes_a_new_one(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    before = only(node).record
    node.links.devices.clear()
    await node.cni.add(add())
    after = only(node).record
    assert after.id != before.id
    assert node.links.devices == {after.spec.host_device: after.ifindex}
    assert node.kernel.endpoints.keys() == {after.ifindex}
    assert node.services.owners == {"c1/eth0": after.ipv4}


async def test_a_cause_that_is_mended_does_not_hide_another(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    endpoint = only(node)
    subject = node.subjects.get(endpoint.record.subject)
    assert subject is not None
    node.kernel.fail = {"attach"}
    with pytest.raises(Internal):
        await node.manager.regenerate(endpoint.record.id)
    node.manager.subject_changed(subject)
    assert only(node).status.state is State.DEGRADED
    assert "attach refused" in only(node).status.last_error


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("services", "allocate"),
        ("services", "resolve"),
        ("links", "prepare_endpoint_link"),
        ("links", "create_endpoint_link"),
        ("links", "open_endpoint_link"),
        ("kernel", "put_policy"),
        ("kernel", "put_subject"),
        ("kernel", "attach"),
    ],
)
async def test_whatever_fails_an_add_leaves_nothing(node: NodeUnderTest, where: str, what: str) -> None:
    getattr(node, where).fail = {what}
    with pytest.raises((FimbriaError,)):
        await node.cni.add(add())
    getattr(node, where).fail = set()
    await node.releases.settle("c1/eth0")
    await node.nothing_left()
    assert node.services.owners == {}
    assert node.services.published == {}
    assert list(node.subjects) == []
    await node.cni.add(add())
    assert only(node).status.state is State.READY


async def test_an_add_does_not_wait_until_the_cluster_is_told(node: NodeUnderTest) -> None:
    node.services.fail = {"publish"}
    await node.cni.add(add())
    await until(lambda: only(node).status.state is State.DEGRADED)
    assert "not published" in only(node).status.last_error
    assert node.publication.outdated.is_set()
    node.services.fail = set()
    records, revision = await node.publication.publish_all()
    for record in records:
        node.manager.published(record.id, revision)
    status = only(node).status
    assert (status.state, status.last_error) == (State.READY, "")
    assert status.ipcache_revision == revision
    assert node.services.published


async def test_labels_that_an_endpoint_has_need_not_be_resolved_again(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    node.ipcache.state.connected = node.uses.settled = True
    node.services.fail = {"resolve"}
    await node.cni.add(add("c2", netns="/run/netns/two"))
    first, second = node.registry
    assert first.record.identity == second.record.identity
    assert first.record.subject == second.record.subject


async def test_with_identity_away_a_new_pod_waits_though_its_labels_are_known(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    node.services.down = True
    with pytest.raises(Unavailable):
        await node.cni.add(add("c2", netns="/run/netns/two"))


async def test_an_add_without_services_asks_to_come_again(node: NodeUnderTest) -> None:
    node.services.down = True
    with pytest.raises(Unavailable):
        await node.cni.add(add())
    await node.nothing_left()


async def test_a_delete_gives_everything_back(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    await node.cni.delete(request("DEL"))
    await node.nothing_left()
    assert node.services.owners == {}
    assert node.services.published == {}
    await node.cni.delete(request("DEL", netns=""))


async def test_a_delete_without_services_succeeds_and_is_made_up_for(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    node.services.down = True
    await node.cni.delete(request("DEL"))
    await node.nothing_left()
    assert node.services.owners == {"c1/eth0": "10.0.0.2"}
    await node.restart()
    assert len(node.releases) == 1
    with pytest.raises(Unavailable):
        await node.cni.add(add())
    node.services.down = False
    await node.cni.add(add())
    assert node.services.owners == {"c1/eth0": "10.0.0.2"}
    assert node.services.published == {"10.0.0.2/32": 256}
    assert len(node.releases) == 0


async def test_deletes_and_adds_of_one_container_take_turns(node: NodeUnderTest) -> None:
    await asyncio.gather(
        node.cni.add(add()),
        node.cni.delete(request("DEL")),
        node.cni.add(add()),
        node.cni.delete(request("DEL")),
    )
    await node.nothing_left()
    assert node.services.owners == {}


async def test_two_pods_of_one_identity_share_their_policy(node: NodeUnderTest) -> None:
    await asyncio.gather(node.cni.add(add("c1")), node.cni.add(add("c2", netns="/run/netns/2")))
    assert len({endpoint.record.subject for endpoint in node.registry}) == 1
    await node.cni.delete(request("DEL", "c1"))
    assert len(node.kernel.rows) == 1
    await node.cni.delete(request("DEL", "c2"))
    await until(lambda: node.kernel.rows == {})


async def test_other_labels_are_another_identity_and_another_subject(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    before = only(node).record
    labels = LabelSet(["k8s:app=other", "k8s:io.kubernetes.pod.namespace=shop"])
    endpoint = await node.manager.update_labels(before.id, labels)
    assert endpoint.record.identity == 257
    assert endpoint.record.spec.labels == labels
    assert node.kernel.endpoints[before.ifindex].identity == 257
    await until(lambda: node.kernel.rows.keys() == {endpoint.record.subject})
    assert node.kernel.addresses["10.0.0.2/32"] == Meaning(257)
    assert node.services.published == {"10.0.0.2/32": 257}
    assert StateDirectory(node.directory).load_endpoints() == [endpoint.record]
    calls = len(node.services.calls)
    await node.manager.update_labels(before.id, labels)
    assert len(node.services.calls) == calls


async def test_labels_that_cannot_be_changed_leave_the_old_ones_in_force(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    before = only(node).record
    node.services.down = True
    with pytest.raises(Unavailable):
        await node.manager.update_labels(before.id, ["k8s:app=other"])
    assert only(node).record == before
    assert only(node).status.state is State.READY
    assert node.kernel.endpoints[before.ifindex].identity == 256
    with pytest.raises(NotFound):
        await node.manager.update_labels(999, ["k8s:app=other"])


async def test_a_kernel_that_refuses_a_change_gets_back_what_was_there(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    before = only(node).record
    node.kernel.fail = {"update"}
    with pytest.raises(Internal):
        await node.manager.update_labels(before.id, ["k8s:app=other"])
    assert only(node).status.state is State.DEGRADED
    node.kernel.fail = set()
    await until(lambda: only(node).status.state is State.READY)
    assert only(node).record == before
    assert node.kernel.endpoints[before.ifindex].identity == 256
    await until(lambda: node.kernel.rows.keys() == {before.subject})


async def test_a_new_identity_is_carried_only_when_every_node_knows_it(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    before = only(node).record
    node.barrier.closed.clear()
    node.barrier.open.clear()
    moving = asyncio.create_task(node.manager.update_labels(before.id, ["k8s:app=other"]))
    async with asyncio.timeout(5):
        await node.barrier.closed.wait()
    assert node.kernel.endpoints[before.ifindex].identity == 256
    node.barrier.open.set()
    assert (await moving).record.identity == 257
    assert node.kernel.endpoints[before.ifindex].identity == 257


async def test_a_check_compares_with_the_kernel(node: NodeUnderTest) -> None:
    with pytest.raises(NotFound):
        await node.cni.check(request("CHECK"))
    result = await node.cni.add(add())
    assert await node.cni.check(request("CHECK")) == result
    node.kernel.endpoints.clear()
    with pytest.raises(CniError, match="no row"):
        await node.cni.check(request("CHECK"))
    node.links.devices.clear()
    with pytest.raises(CniError, match="device is gone"):
        await node.cni.check(request("CHECK"))


async def test_regenerating_writes_what_is_missing(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    record = only(node).record
    node.kernel.endpoints.clear()
    node.kernel.rows.clear()
    endpoint = await node.manager.regenerate(record.id)
    assert endpoint.status.state is State.READY
    assert record.ifindex in node.kernel.endpoints
    assert record.subject in node.kernel.rows


async def test_new_programs_reach_every_endpoint(node: NodeUnderTest) -> None:
    await node.cni.add(add("c1"))
    await node.cni.add(add("c2", netns="/run/netns/2"))
    first = next(iter(node.registry)).record.id
    node.kernel.writes.clear()
    await node.manager.regenerate(first, Level.REBUILD)
    assert node.kernel.writes == ["rebuild", "update"], "the rebuild moves every device"


async def test_a_failed_regeneration_says_why_and_is_tried_again(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    record = only(node).record
    node.kernel.fail = {"attach"}
    with pytest.raises(Internal, match="attach refused"):
        await node.manager.regenerate(record.id)
    assert only(node).status.state is State.DEGRADED
    node.kernel.fail = set()
    await until(lambda: only(node).status.state is State.READY)
    assert only(node).status.last_error == ""


async def test_a_publication_of_everything_forgets_no_endpoint_that_is_being_made(
    node: NodeUnderTest,
) -> None:
    node.links.gate.clear()
    adding = asyncio.create_task(node.cni.add(add()))
    await until(lambda: bool(node.services.published))
    await node.publication.publish_all()
    assert node.services.published == {"10.0.0.2/32": 256}
    node.links.gate.set()
    await adding
    await node.publication.publish_all()
    assert node.services.published == {"10.0.0.2/32": 256}
    deleting = asyncio.create_task(node.cni.delete(request("DEL")))
    await asyncio.gather(deleting, node.publication.publish_all())
    assert node.services.published == {}


async def test_a_restart_touches_nothing_that_is_right(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    before = only(node).record
    addresses, rows = dict(node.kernel.addresses), dict(node.kernel.rows)
    node.kernel.writes.clear()
    assert await node.restart() == Restored(1, 0, 0)
    await node.policy_service.hear("watch", 2)
    assert only(node).record == before
    assert only(node).status.state is State.READY
    assert node.kernel.writes == []
    assert (node.kernel.addresses, node.kernel.rows) == (addresses, rows)


async def test_an_endpoint_that_cannot_be_attached_after_a_restart_says_so_until_it_can(
    node: NodeUnderTest,
) -> None:
    await node.cni.add(add())
    node.kernel.fail = {"attach"}
    node.kernel.hooked.clear()
    await node.restart()
    assert only(node).status.state is State.DEGRADED
    assert "attach refused" in only(node).status.last_error
    node.kernel.fail = set()
    await until(lambda: only(node).status.state is State.READY)


async def test_a_restart_takes_half_made_endpoints_apart(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    record = only(node).record
    node.state.save_endpoint(replace(record, phase=Phase.CREATING, ifindex=0, ipv4="", subject=0))
    assert (await node.restart()).removed == 1
    await node.releases.settle("c1/eth0")
    assert len(node.registry) == 0
    assert node.links.devices == {}
    assert node.kernel.endpoints == {}
    assert node.kernel.rows == {}
    assert node.services.owners == {}


async def test_a_restart_forgets_endpoints_whose_device_is_gone(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    node.links.devices.clear()
    assert (await node.restart()).removed == 1
    await node.releases.settle("c1/eth0")
    await node.nothing_left()
    assert node.services.owners == {}


async def test_a_restart_removes_what_belongs_to_nobody(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    (node.directory / "endpoints" / f"{only(node).record.id}.json").unlink()
    restored = await node.restart()
    assert restored.orphans >= 2
    assert node.links.devices == {}
    assert node.kernel.endpoints == {}
    assert node.kernel.rows == {}


async def test_a_damaged_record_keeps_its_pod_connected(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    (node.directory / "endpoints" / f"{only(node).record.id}.json").write_text("{")
    for _ in range(2):
        assert await node.restart() == Restored(0, 0, 0)
        assert len(node.links.devices) == 1
        assert len(node.kernel.endpoints) == 1
        assert len(node.kernel.rows) == 1
    await node.cni.delete(request("DEL"))
    assert (node.links.devices, node.kernel.endpoints) == ({}, {})
    assert (node.services.owners, node.services.published) == ({}, {})


async def test_an_endpoint_without_a_policy_in_the_kernel_gets_one_when_the_service_tells(
    node: NodeUnderTest,
) -> None:
    await node.cni.add(add())
    node.kernel.rows.clear()
    await node.restart()
    await until(lambda: bool(node.kernel.rows))
    assert only(node).status.policy_revision == 1
