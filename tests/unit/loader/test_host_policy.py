"""The node as a subject: under a policy while one selects it, and told of only when that is so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
from fimbria.policy.v1 import policy_pb2 as pb

from services.chassis.settings import SettingsError, load_settings
from services.loader.host_policy import HostPolicy, failsafe_ports, target_ports
from services.loader.policy.entries import EntryValue
from services.loader.policy.plan import Realized
from services.loader.policy.shape import EMPTY
from services.loader.policy.subjects import HOST_USER, Subject, SubjectTable
from services.loader.policy.sync import PolicySync
from services.loader.settings import LoaderSettings
from services.loader.settings_types import FailsafePort
from tests.unit.loader.fakes import Counting, FakeKernel
from tests.unit.loader.policy_service import FakePolicyService, delta, entry, progress, revision, snapshot
from tests.unit.loader.waiting import until

HOST = 1
LABELS = ("k8s:zone=a", "k8s:kubernetes.io/hostname=node-1")
# From a former process: the node is under subject 7.
FORMER = Realized(3, 4, 5, ingress_enforced=True, egress_enforced=False, entries={}, shape=EMPTY)


class FakeHostKernel(FakeKernel):
    """A kernel with the node's own row."""

    def __init__(self) -> None:
        super().__init__()
        self.host = 0

    def host_subject(self) -> int:
        return self.host

    def set_host_subject(self, subject: int) -> None:
        self._write("set_host_subject")
        assert not subject or subject in self.rows, "in force before it is realized"
        self.host = subject


@dataclass
class Node:
    kernel: FakeHostKernel
    service: FakePolicyService
    table: SubjectTable
    sync: PolicySync
    running: asyncio.Task[None] | None = None

    def start(self, *, enabled: bool = True, always: bool = False) -> None:
        HostPolicy(self.kernel, self.table, LABELS, enabled=enabled, always=always).start()
        self.table.sweep()
        self.running = asyncio.create_task(self.sync.run())

    @property
    def subject(self) -> Subject:
        found = self.table.of_host()
        assert found is not None
        return found

    async def acknowledged(self, policy: int) -> None:
        await until(lambda: (policy, "") in self.service.acks)


def nothing(policy: int = 1) -> pb.SubscribeResponse:
    """A snapshot of a subject that no policy selects."""
    message = pb.SubscribeResponse(revision=revision(policy, 1))
    message.snapshot.SetInParent()
    return message


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    kernel, service = FakeHostKernel(), FakePolicyService()
    table = SubjectTable(
        kernel,
        instances=Counting(10),
        epochs=Counting(10),
        numbers=Counting(10),
        later=asyncio.get_running_loop().call_later,
    )
    made = Node(
        kernel,
        service,
        table,
        PolicySync(node="node-1", open_stream=service.open, table=table, changed=lambda _: None),
    )
    yield made
    await made.sync.close()
    if made.running is not None:
        made.running.cancel()
        with suppress(asyncio.CancelledError):
            await made.running


async def test_it_is_asked_for_by_its_labels_and_off_while_nothing_selects_it(node: Node) -> None:
    node.service.answer(HOST, nothing())
    node.start()
    (watch,) = (each.watch for each in await node.service.hear("watch"))
    assert (watch.identity, watch.identity_revision) == (HOST, 0)
    assert tuple(watch.labels) == tuple(sorted(LABELS))
    node.service.say(progress(1))
    await node.acknowledged(1)
    assert node.kernel.host == 0
    assert "set_host_subject" not in node.kernel.writes


async def test_a_policy_puts_it_in_force_before_that_is_acknowledged_and_deleting_ends_it(node: Node) -> None:
    node.service.answer(HOST, nothing())
    node.start()
    await node.service.hear("watch")
    number = node.subject.number
    node.service.say(delta(number, [entry(6, 22)], policy=2))
    node.service.say(progress(2))
    await node.acknowledged(2)
    assert node.kernel.host == number
    assert node.kernel.rows[number].ingress_enforced

    # An allow more is a change of its policy alone.
    node.kernel.writes.clear()
    node.service.say(delta(number, [entry(2, 443)], policy=3))
    node.service.say(progress(3))
    await node.acknowledged(3)
    assert "set_host_subject" not in node.kernel.writes

    gone = pb.SubjectDelta(subject=number, deletes=[entry(6, 22), entry(2, 443)])
    node.service.say(pb.SubscribeResponse(revision=revision(4, 1), delta=gone))
    node.service.say(progress(4))
    await node.acknowledged(4)
    assert node.kernel.host == 0


async def test_what_only_denies_puts_it_in_force(node: Node) -> None:
    node.service.answer(HOST, nothing())
    node.start()
    await node.service.hear("watch")
    denies = pb.SubjectDelta(subject=node.subject.number, upserts=[entry(2, 80, deny=True)])
    node.service.say(pb.SubscribeResponse(revision=revision(2, 1), delta=denies))
    await until(lambda: node.kernel.host == node.subject.number)
    instance = node.kernel.rows[node.subject.number].instance
    assert list(node.kernel.entries[instance].values()) == [EntryValue(True, 1)]


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize(
    "audited",
    [
        pb.SubjectDelta(upserts=[entry(2, 80, deny=True, audit=True)]),
        pb.SubjectDelta(ingress=pb.DirectionPolicy(audit_enforced=True)),
    ],
)
async def test_a_policy_in_audit_mode_puts_it_under_a_policy_unless_that_would_enforce_it(
    node: Node, audited: pb.SubjectDelta, always: bool
) -> None:
    node.service.answer(HOST, nothing())
    node.start(always=always)
    await node.service.hear("watch")
    audited.subject = node.subject.number
    node.service.say(pb.SubscribeResponse(revision=revision(2, 1), delta=audited))
    node.service.say(progress(2))
    await node.acknowledged(2)
    assert node.kernel.host == (0 if always else node.subject.number)
    node.service.say(delta(node.subject.number, [entry(6)], policy=3))
    node.service.say(progress(3))
    await node.acknowledged(3)
    assert node.kernel.host == node.subject.number


async def test_a_row_that_cannot_be_turned_is_told_and_tried_again(node: Node) -> None:
    node.service.answer(HOST, nothing())
    node.start()
    await node.service.hear("watch")
    node.service.say(progress(1))
    await node.acknowledged(1)
    node.kernel.fail = {"set_host_subject"}
    node.service.say(delta(node.subject.number, [entry(6)], policy=2))
    node.service.say(progress(2))
    await until(lambda: any("set_host_subject refused" in error for _, error in node.service.acks))
    assert (2, "") not in node.service.acks
    node.kernel.fail = set()
    await node.acknowledged(2)
    assert node.kernel.host == node.subject.number


async def test_a_restart_keeps_it_in_force_until_the_service_says_otherwise(node: Node) -> None:
    node.kernel.put_subject(7, FORMER)
    node.kernel.host = 7
    node.start()
    (watch,) = (each.watch for each in await node.service.hear("watch"))
    assert watch.subject == 7
    assert (node.kernel.host, set(node.kernel.rows)) == (7, {7})
    assert node.subject.users == {HOST_USER}

    node.service.say(snapshot(7, entry(6)))
    node.service.say(progress(1))
    await node.acknowledged(1)
    assert node.kernel.host == 7
    message = nothing(2)
    message.snapshot.subject = 7
    node.service.say(message)
    node.service.say(progress(2))
    await node.acknowledged(2)
    assert node.kernel.host == 0


async def test_a_subject_that_was_lost_is_as_it_was_until_the_service_says(node: Node) -> None:
    node.kernel.host = 7
    node.start()
    await node.service.hear("watch")
    assert node.kernel.host == 7
    node.service.say(snapshot(7, entry(6)))
    await until(lambda: 7 in node.kernel.rows)


async def test_disabled_it_is_switched_off_and_nobody_is_asked(node: Node) -> None:
    node.kernel.put_subject(7, FORMER)
    node.kernel.host = 7
    node.start(enabled=False)
    await node.service.hear("hello")
    assert node.kernel.host == 0
    assert node.table.of_host() is None
    assert node.kernel.rows == {}


def load(**variables: str) -> LoaderSettings:
    given = {f"FIMBRIA_{name}": value for name, value in variables.items()}
    return load_settings(LoaderSettings, [], given)


def test_labels_of_the_node() -> None:
    assert load(NODE_NAME="node-1").host_labels == ("k8s:kubernetes.io/hostname=node-1",)
    assert load(NODE_NAME="node-1", NODE_LABELS="role=edge, node.example/x=").host_labels == (
        "k8s:kubernetes.io/hostname=node-1",
        "k8s:node.example/x=",
        "k8s:role=edge",
    )
    given = load(NODE_NAME="node-1", NODE_LABELS="kubernetes.io/hostname=metal-7,zone=a,zone=a")
    assert given.host_labels == ("k8s:kubernetes.io/hostname=metal-7", "k8s:zone=a")
    assert load(NODE_NAME="n" * 64).host_labels == ()


@pytest.mark.parametrize("labels", ["role", "a b=c", "=x", "role=edge,role=core", "role=-"])
def test_labels_that_make_no_sense_are_refused(labels: str) -> None:
    with pytest.raises(SettingsError, match="FIMBRIA_NODE_LABELS"):
        load(NODE_LABELS=labels)


@pytest.mark.parametrize(
    ("target", "ports"),
    [
        ("ipv4:127.0.0.1:4001", [4001]),
        ("ipv4:192.0.2.1:4001,192.0.2.2:4011", [4001, 4011]),
        ("ipv6:[2001:db8::1]:4001", [4001]),
        ("dns:///ipam.example:4001", [4001]),
        ("ipam:4001", [4001]),
        ("dns:///ipam", []),
        ("unix:/run/ipam:4001", []),
        ("ipam:99999", []),
    ],
)
def test_ports_of_targets(target: str, ports: list[int]) -> None:
    assert target_ports(target) == ports


def test_services_are_reached_wherever_they_are() -> None:
    tcp = 6
    found = failsafe_ports(load(IPAM_TARGET="dns:///ipam:5001", POLICY_TARGET="unix:/run/policy.sock"))
    assert found[0] == FailsafePort(True, 22, tcp)
    assert FailsafePort(False, 5001, tcp) in found
    assert len(set(found)) == len(found)
    only = failsafe_ports(load(HOST_FAILSAFE_PORTS="ingress:2222/TCP", IPAM_TARGET="ipam:5001"))
    assert only[:2] == (FailsafePort(True, 2222, tcp), FailsafePort(False, 5001, tcp))
    assert failsafe_ports(load(HOST_FAILSAFE_PORTS="")) == ()
