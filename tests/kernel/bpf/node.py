"""A node for test runs: the datapath of a node with two endpoints, fed with packets by BPF_PROG_TEST_RUN."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.events import Event
from services.loader.bpf.layout import (
    Direction,
    EndpointRow,
    IpcacheValue,
    PolicyKey,
    PolicyValue,
    SubjectRow,
    direction_shape,
)
from services.loader.bpf.testrun import TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, TestRun, run_program

NODE, ROUTER = "172.31.0.1", "10.244.1.1"
OTHER_NODE, OTHER_ROUTER = "172.31.0.2", "10.244.2.1"
WEB, CLIENT, REMOTE, WORLD = "10.244.1.10", "10.244.1.11", "10.244.2.10", "198.51.100.7"
NODE6, ROUTER6, POD_CIDR6 = "fd00:31::1", "fd00:244:1::1", "fd00:244:1::/64"
WEB6, CLIENT6, REMOTE6, WORLD6 = "fd00:244:1::10", "fd00:244:1::11", "fd00:244:2::10", "2001:db8::7"
WEB_ID, CLIENT_ID, REMOTE_ID = 1001, 1002, 1003
WEB_SUBJECT, CLIENT_SUBJECT = 1, 2

SMALL_MAPS = {
    "ct4": 4096, "ct6": 4096, "policy": 4096, "ipcache4": 1024, "ipcache4_lpm": 256, "ipcache6": 1024,
    "ipcache6_lpm": 256, "frag4": 1024, "frag6": 1024, "block4": 256, "block6": 256,
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A policy entry of a test, and whether it denies."""

    identity: int = 0
    protocol: int = 0
    port: int = 0
    prefix: int = 16
    deny: bool = False
    cookie: int = 0

    def entry(self, instance: int, direction: Direction) -> tuple[PolicyKey, PolicyValue]:
        prefix = self.prefix if self.port else 0
        key = PolicyKey(instance, self.identity, direction, self.protocol, self.port, prefix)
        return key, PolicyValue(deny=self.deny, rule_cookie=self.cookie)


@dataclass
class Node:
    """Endpoints ``web`` and ``client`` under subjects that allow everything at first."""

    datapath: KernelDatapath
    web: EndpointRow
    client: EndpointRow
    host_ifindex: int
    epochs: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Programs report only while somebody reads.
        self._reported: list[Event] = []
        self.reader = self.datapath.events(self._reported.append)

    def policy(
        self,
        subject: int,
        *,
        ingress: Iterable[Rule] | None = None,
        egress: Iterable[Rule] | None = None,
        revision: int = 1,
        audit: bool = False,
    ) -> None:
        """Puts a subject under these rules, as a new instance; None leaves a direction unenforced."""
        epoch = self.epochs[subject] = self.epochs.get(subject, 0) + 1
        instance = subject * 1000 + epoch
        entries = [
            rule.entry(instance, direction)
            for direction, rules in ((Direction.INGRESS, ingress), (Direction.EGRESS, egress))
            for rule in rules or ()
        ]
        self.datapath.policy_put(entries)
        row = SubjectRow(
            instance, epoch, revision,
            direction_shape(entries, Direction.INGRESS, enforced=ingress is not None, audit=audit),
            direction_shape(entries, Direction.EGRESS, enforced=egress is not None, audit=audit),
        )  # fmt: skip
        self.datapath.subject_put(subject, row)

    def leave(self, endpoint: EndpointRow, packet: bytes) -> TestRun:
        """The endpoint sends."""
        return run_program(self.datapath.program_fd("from_container"), packet, ifindex=endpoint.ifindex)

    def arrive(
        self, endpoint: EndpointRow, packet: bytes, *, ingress_ifindex: int = 0, mark: int = 0
    ) -> TestRun:
        """The stack hands over for the endpoint; ``ingress_ifindex`` 0: the node itself made it."""
        fd = self.datapath.program_fd("to_container")
        return run_program(fd, packet, ifindex=endpoint.ifindex, ingress_ifindex=ingress_ifindex, mark=mark)

    def host_sends(self, packet: bytes, *, ingress_ifindex: int = 0, mark: int = 0) -> TestRun:
        """The stack sends into the pod network."""
        fd = self.datapath.program_fd("from_host")
        return run_program(fd, packet, ifindex=self.host_ifindex, ingress_ifindex=ingress_ifindex, mark=mark)

    def drops(self) -> dict[int, int]:
        """Packets dropped so far, by reason."""
        found: dict[int, int] = {}
        for metric in self.datapath.metrics():
            if metric.reason:
                found[metric.reason] = found.get(metric.reason, 0) + metric.packets
        return found

    def events(self) -> list[Event]:
        """Every event since this was last asked."""
        while self.reader.consume():
            pass
        found, self._reported[:] = list(self._reported), []
        return found


def forwarded(run: TestRun) -> bool:
    """Whether a program let the packet go on, by itself or through the stack."""
    assert run.action in (TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT), run
    return run.action != TC_ACT_SHOT


def populate(node: Node) -> None:
    """The ipcache of a cluster of two nodes, and no policy."""
    node.datapath.ipcache_put(
        [
            (WEB, IpcacheValue(WEB_ID)),
            (CLIENT, IpcacheValue(CLIENT_ID)),
            (REMOTE, IpcacheValue(REMOTE_ID, OTHER_NODE)),
            (WEB6, IpcacheValue(WEB_ID)),
            (CLIENT6, IpcacheValue(CLIENT_ID)),
            (REMOTE6, IpcacheValue(REMOTE_ID, OTHER_NODE)),
            (OTHER_NODE, IpcacheValue(6)),
            (OTHER_ROUTER, IpcacheValue(6, OTHER_NODE)),
        ]
    )
    node.policy(WEB_SUBJECT)
    node.policy(CLIENT_SUBJECT)
    for endpoint in (node.web, node.client):
        node.datapath.attach_endpoint(endpoint)
