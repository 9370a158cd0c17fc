"""The core's view of the real datapath: what is written comes back, also when programs have been replaced."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from services.loader.bpf.datapath import KernelDatapath, NodeConfig
from services.loader.bpf.pins import remove_pins
from services.loader.endpoints.endpoint import EndpointRecord, EndpointSpec, Phase
from services.loader.interfaces import AttachedEndpoint, DatapathError, MapTooSmall
from services.loader.ipcache.table import Changes, Meaning
from services.loader.kernel import Enforcement, Kernel, NodeRows, PolicyMode
from services.loader.policy.entries import (
    ADMIN,
    AUDIT,
    BASELINE,
    BY_ADDRESS,
    EGRESS,
    INGRESS,
    EntryKey,
    EntryValue,
)
from services.loader.policy.plan import DirectionDefault, SubjectState, plan
from services.loader.policy.subjects import realized_from
from services.loader.settings_types import FailsafePort
from tests.kernel.netlink.namespaces import Namespace, Namespaces

pytestmark = pytest.mark.kernel

REPOSITORY = Path(__file__).resolve().parents[3]
DEVICE = "lxc0123456789ab"


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespaces() as namespaces:
        made = namespaces.make()
        for name, peer in (("fimbria_host", "fimbria_net"), (DEVICE, "eth0")):
            made.command("ip", "link", "add", name, "type", "veth", "peer", "name", peer)
        yield made


@pytest.fixture
def kernel(node: Namespace) -> Iterator[Kernel]:
    pins = f"/sys/fs/bpf/fimbria/test-{os.getpid()}-{node.name}"

    def reopen(*, rebuild: bool, map_sizes: Mapping[str, int]) -> KernelDatapath:
        config = NodeConfig(
            node_name="node-1",
            node_ipv4="172.31.1.1",
            router_ipv4="10.244.1.1",
            pod_cidrs=("10.244.1.0/24",),
            host_ifindex=socket.if_nametoindex("fimbria_host"),
            net_ifindex=socket.if_nametoindex("fimbria_net"),
            vxlan_ifindex=0,
            masquerade=True,
            map_sizes=map_sizes,
        )
        return KernelDatapath.open(
            config,
            rebuild=rebuild,
            pin_dir=pins,
            source_dir=str(REPOSITORY / "bpf"),
            cache_dir=str(REPOSITORY / "build" / "bpf-cache"),
        )

    made = node.run(lambda: Kernel(reopen(rebuild=False, map_sizes={}), reopen))
    yield made
    made.close()
    remove_pins(pins)


@dataclass
class Taking:
    """Epochs from an iterator."""

    numbers: Iterator[int]

    def take(self) -> int:
        return next(self.numbers)


def state() -> SubjectState:
    return SubjectState(
        DirectionDefault(True),
        DirectionDefault(audit_enforced=True),
        {
            EntryKey(INGRESS, 256, 6, 80, 16): EntryValue(False, 7),
            EntryKey(INGRESS, 0, 17, 0x3000, 4): EntryValue(True, 8),
            EntryKey(EGRESS, 0, 0, 0, 0): EntryValue(False, 9),
            EntryKey(EGRESS, 256, 6, 80, 16, ADMIN): EntryValue(False, 10, passes=True, order=5 << 16 | 2),
            EntryKey(INGRESS, 0xFF0000, 0, 0, 0, BASELINE | BY_ADDRESS): EntryValue(True, 11, order=7),
            EntryKey(INGRESS, 256, 6, 80, 16, AUDIT): EntryValue(True, 12),
        },
        revision=5,
    )


def test_a_policy_comes_back_as_it_was_written(kernel: Kernel) -> None:
    todo = plan(None, state(), fresh_instance=3, fresh_epoch=4)
    assert todo is not None
    kernel.put_policy(3, todo.puts)
    kernel.put_subject(11, todo.target)
    heads, entries = kernel.subjects(), kernel.policy()
    assert realized_from(heads[11], entries[3]) == todo.target
    assert plan(todo.target, state(), fresh_instance=5, fresh_epoch=5) is None
    assert {count.key for count in kernel.policy_counts(3)} == set(state().entries)
    kernel.delete_subject(11)
    kernel.delete_policy(3, state().entries)
    kernel.delete_policy(3, state().entries)
    assert (kernel.subjects(), kernel.policy()) == ({}, {})


def test_prefixes_come_back_as_they_were_written_and_flows_look_again(kernel: Kernel) -> None:
    numbers = {"0.0.0.0/0": 9, "10.0.0.0/8": 0xFF0000, "192.0.2.7/32": 0xFF0001, "::/0": 10}
    numbers |= {"2001:db8::/32": 0xFF0002, "2001:db8::1/128": 0xFF0003}

    def generation() -> bytes:
        (row,) = kernel.map_entries("node_state", 1)
        return row.value[:4]

    before = generation()
    kernel.write_prefixes(numbers, ())
    assert kernel.prefixes() == kernel.walk_prefixes() == numbers
    written = generation()
    assert written != before
    kernel.write_prefixes({"10.0.0.0/8": 7}, ["::/0", "0.0.0.0/0", "198.51.100.0/24"])
    assert generation() != written
    expected = {prefix: number for prefix, number in numbers.items() if not prefix.endswith("/0")}
    assert kernel.prefixes() == expected | {"10.0.0.0/8": 7}
    held = {found.name: (found.entries, found.pressure) for found in kernel.maps()}
    assert held["block4"] == (2, 2 / 65536) and held["block6"] == (2, 2 / 65536)
    with pytest.raises(DatapathError, match="bits are set beyond its length"):
        kernel.write_prefixes({"10.0.0.1/8": 1}, ())


def test_maps_of_prefixes_are_resized_with_what_they_hold(kernel: Kernel, node: Namespace) -> None:
    kernel.write_prefixes({"10.0.0.0/8": 1, "10.1.0.0/16": 2}, ())
    assert node.run(lambda: kernel.resize_map("block4", 100)).max_entries == 100
    assert kernel.prefixes() == {"10.0.0.0/8": 1, "10.1.0.0/16": 2}
    with pytest.raises(MapTooSmall):
        node.run(lambda: kernel.resize_map("block4", 1))


def test_the_ipcache_comes_back_as_it_was_written(kernel: Kernel) -> None:
    pod, prefix = "10.244.2.7/32", "192.0.2.0/24"
    kernel.write_ipcache(Changes({pod: Meaning(300, "172.31.1.2"), prefix: Meaning(301)}))
    assert kernel.ipcache() == {pod: Meaning(300, "172.31.1.2"), prefix: Meaning(301)}
    kernel.write_ipcache(Changes({pod: Meaning(302)}, (prefix, "10.9.9.9/32")))
    assert kernel.ipcache() == {pod: Meaning(302)}


def test_ipv6_prefixes_come_back_too(kernel: Kernel) -> None:
    meanings = {
        "fd00:10:244::2:7/128": Meaning(300, "172.31.1.2"),
        "2001:db8::/32": Meaning(301),
        "10.244.2.7/32": Meaning(300, "172.31.1.2"),
    }
    kernel.write_ipcache(Changes(meanings))
    assert kernel.ipcache() == meanings
    kernel.write_ipcache(Changes({}, tuple(meanings)))
    assert kernel.ipcache() == {}


@pytest.mark.parametrize("enforcement", ["default", "always", "never"])
@pytest.mark.parametrize("audit", [False, True])
def test_rows_of_another_mode_are_rewritten_once(
    kernel: Kernel, enforcement: Enforcement, audit: bool
) -> None:
    todo = plan(None, state(), fresh_instance=3, fresh_epoch=4)
    assert todo is not None
    kernel.put_policy(3, todo.puts)
    kernel.put_subject(11, todo.target)
    before = kernel.subjects()[11]
    mode = PolicyMode(enforcement, audit)
    again = Kernel(kernel._datapath, kernel._reopen, mode)
    changed = int(mode != PolicyMode())
    epochs = iter([50, 51])
    assert again.conform_subjects(Taking(epochs)) == changed
    assert again.conform_subjects(Taking(epochs)) == 0
    head = kernel.subjects()[11]
    assert (head.ingress_enforced, head.egress_enforced) == {
        "default": (True, False),
        "always": (True, True),
        "never": (False, False),
    }[enforcement]
    assert head.epoch == (50 if changed else before.epoch)
    assert (head.instance, head.revision) == (before.instance, before.revision)
    # And back: what was in force is, as far as the row tells.
    kernel.conform_subjects(Taking(iter([60])))
    assert kernel.subjects()[11].ingress_enforced == (enforcement != "never")


def test_what_the_nodes_programs_go_by_is_written(kernel: Kernel) -> None:
    rows = NodeRows(
        "02:00:00:00:00:03",
        "02:00:00:00:00:04",
        (FailsafePort(True, 22, 6), FailsafePort(False, 53, 17)),
        ("10.0.0.0/8", "fd00::/8"),
    )
    for _ in range(2):
        kernel.configure_node(rows)
    counts = {found.name: found.entries for found in kernel.maps()}
    assert (counts["failsafe"], counts["nat_exclude4"], counts["nat_exclude6"]) == (2, 1, 1)
    kernel.configure_node(replace(rows, failsafe_ports=()))
    assert {found.name: found.entries for found in kernel.maps()}["failsafe"] == 0
    assert kernel.attached() == []


def test_an_endpoint_stays_when_the_programs_are_replaced(node: Namespace, kernel: Kernel) -> None:
    ifindex = node.run(lambda: socket.if_nametoindex(DEVICE))
    record = EndpointRecord(
        id=7,
        spec=EndpointSpec("c1", "eth0", "", rate=1000),
        phase=Phase.READY,
        create_time=0.0,
        ipv4="10.244.1.7",
        ipv6="fd00:10:244::1:7",
        identity=300,
        subject=11,
        ifindex=ifindex,
        host_mac="02:00:00:00:00:01",
        pod_mac="02:00:00:00:00:02",
    )
    row = AttachedEndpoint(
        ifindex, 7, 300, 11, "10.244.1.7", record.host_mac, record.pod_mac, "fd00:10:244::1:7", 1000
    )
    node.run(lambda: kernel.attach(record))
    assert kernel.attached() == [row]
    before = {program.name: program for program in node.run(kernel.programs)}
    assert DEVICE in before["from_container"].devices
    node.run(lambda: kernel.reload(rebuild=True))
    node.run(lambda: kernel.attach(record))
    after = {program.name: program for program in node.run(kernel.programs)}
    assert after["from_container"].id != before["from_container"].id
    assert DEVICE in after["from_container"].devices
    assert kernel.attached() == [row]
    kernel.detach(ifindex, record.ipv4, record.ipv6)
    kernel.detach(ifindex, record.ipv4, record.ipv6)
    assert kernel.attached() == []


def test_a_device_that_is_gone_is_an_error_that_says_so(kernel: Kernel, node: Namespace) -> None:
    record = EndpointRecord(
        id=7,
        spec=EndpointSpec("c1", "eth0", ""),
        phase=Phase.READY,
        create_time=0.0,
        ipv4="10.244.1.7",
        subject=1,
        ifindex=9999,
        host_mac="02:00:00:00:00:01",
        pod_mac="02:00:00:00:00:02",
    )
    with pytest.raises(DatapathError, match="No such device"):
        node.run(lambda: kernel.attach(record))
