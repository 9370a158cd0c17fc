"""Opening the datapath again over what is pinned, and what refuses to be."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.loader.bpf import native
from services.loader.bpf.attach import Hook, declarations, filter_program, link_program
from services.loader.bpf.config import NodeConfig
from services.loader.bpf.datapath import KernelDatapath, remove_pins
from services.loader.bpf.errors import BpfError, VerifierError
from services.loader.bpf.layout import EndpointRow, IpcacheValue, PolicyKey, PolicyValue
from tests.kernel.bpf.conftest import SOURCES
from tests.kernel.bpf.namespaces import run
from tests.kernel.bpf.node import CLIENT, WEB, Node, forwarded, populate
from tests.kernel.bpf.packets import ACK, tcp
from tests.patience import patient

pytestmark = pytest.mark.kernel


def link_path(datapath: KernelDatapath) -> str:
    return datapath.pins.link("fimbria_vxlan", "from_overlay")


def test_everything_survives_opening_again(
    node: Node, config: NodeConfig, pin_dir: str, cache_dir: str
) -> None:
    assert forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, 80)))
    before = node.datapath
    with_policy = before.policy_entries(), before.subjects(), before.ipcache(), before.endpoints()
    flows = before.conntrack()
    before.close()
    node.datapath = KernelDatapath.open(config, pin_dir=pin_dir, source_dir=SOURCES, cache_dir=cache_dir)
    try:
        after = node.datapath
        assert after.report.cache_hit
        assert (after.policy_entries(), after.subjects(), after.ipcache(), after.endpoints()) == with_policy
        assert after.conntrack() == flows
        assert forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, 80, ACK)))
        (flow,) = after.conntrack()
        assert flow.packets == (2, 0)
    finally:
        node.datapath.close()


def test_a_link_is_updated_in_place(node: Node, config: NodeConfig, pin_dir: str, cache_dir: str) -> None:
    first = node.datapath
    inode = os.stat(link_path(first)).st_ino
    second = KernelDatapath.open(config, pin_dir=pin_dir, source_dir=SOURCES, cache_dir=cache_dir)
    try:
        assert os.stat(link_path(second)).st_ino == inode
        assert link_program(link_path(second)) == next(
            program.id for program in second.programs() if program.name == "from_overlay"
        )
        assert next(p.devices for p in second.programs() if p.name == "from_overlay") == (
            config.vxlan_ifindex,
        )
    finally:
        second.close()


class LibraryBeforeTcx:
    """libbpf on a kernel before 6.6, which knows no such attach type."""

    def __getattr__(self, name: str) -> Any:
        return getattr(native.lib, name)

    def bpf_link_create(self, *_: object) -> int:
        return -errno.EINVAL


def test_without_tcx_the_nodes_devices_get_filters(
    config: NodeConfig, pin_dir: str, cache_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declarations, "lib", LibraryBeforeTcx())
    datapath = KernelDatapath.open(config, pin_dir=pin_dir, source_dir=SOURCES, cache_dir=cache_dir)
    try:
        devices = {program.name: program.devices for program in datapath.programs()}
        assert devices["from_host"] == (config.host_ifindex,)
        assert devices["from_overlay"] == (config.vxlan_ifindex,)
        assert not os.path.exists(link_path(datapath))
    finally:
        datapath.close()


def test_a_link_of_a_dead_device_is_replaced(
    node: Node, config: NodeConfig, pin_dir: str, cache_dir: str
) -> None:
    run("ip", "link", "del", "fimbria_vxlan")
    run("ip", "link", "add", "fimbria_vxlan", "type", "vxlan", "external", "dstport", "4789")
    assert link_program(link_path(node.datapath)) is None
    fresh = replace(config, vxlan_ifindex=socket.if_nametoindex("fimbria_vxlan"))
    second = KernelDatapath.open(fresh, pin_dir=pin_dir, source_dir=SOURCES, cache_dir=cache_dir)
    try:
        assert link_program(link_path(second)) is not None
    finally:
        second.close()


def test_opening_again_moves_endpoints_to_the_new_programs(
    node: Node, config: NodeConfig, pin_dir: str, cache_dir: str
) -> None:
    def attached() -> set[int | None]:
        return {filter_program(node.web.ifindex, hook) for hook in Hook}

    def made(datapath: KernelDatapath) -> set[int | None]:
        return {p.id for p in datapath.programs() if p.name.endswith("_container")}

    assert attached() == made(node.datapath)
    second = KernelDatapath.open(config, pin_dir=pin_dir, source_dir=SOURCES, cache_dir=cache_dir)
    try:
        assert second.report.endpoints == len(second.endpoints()) == 2
        assert attached() == made(second) != made(node.datapath)
        second.attach_endpoint(node.web)
        second.attach_endpoint(node.web)
        assert attached() == made(second)
        assert run("tc", "filter", "show", "dev", "lxcweb", "ingress").count("direct-action") == 1
    finally:
        second.close()


def test_a_device_that_is_not_there_is_named(node: Node) -> None:
    gone = replace(node.web, ifindex=9999)
    with pytest.raises(BpfError, match="device 9999"):
        node.datapath.attach_endpoint(gone)


def test_a_pinned_map_takes_another_size_with_what_it_holds(
    node: Node, config: NodeConfig, pin_dir: str, cache_dir: str
) -> None:
    before = node.datapath.policy_entries(), node.datapath.subjects()
    node.datapath.close()
    larger = replace(config, map_sizes={**config.map_sizes, "policy": 8192})
    node.datapath = KernelDatapath.open(larger, pin_dir=pin_dir, source_dir=SOURCES, cache_dir=cache_dir)
    try:
        assert [each.name for each in node.datapath.report.migrated] == ["policy"]
        (status,) = [each for each in node.datapath.maps() if each.name == "policy"]
        assert (status.max_entries, status.resized) == (8192, True)
        assert (node.datapath.policy_entries(), node.datapath.subjects()) == before
    finally:
        node.datapath.close()


def test_the_verifiers_words_reach_the_error(config: NodeConfig, pin_dir: str, tmp_path: Path) -> None:
    sources = tmp_path / "bpf"
    shutil.copytree(SOURCES, sources)
    host = sources / "bpf_host.c"
    host.write_text(
        host.read_text().replace(
            "	struct packet p = {", "	*(volatile int *)0 = 1;\n	struct packet p = {"
        )
    )
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(VerifierError, match="load program from_host: ") as caught:
        KernelDatapath.open(
            config, pin_dir=pin_dir, source_dir=str(sources), cache_dir=str(tmp_path / "cache")
        )
    assert len(caught.value.log.splitlines()) > 2
    assert caught.value.detail in caught.value.log
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_removing_the_pins_ends_the_nodes_programs(datapath: KernelDatapath, pin_dir: str) -> None:
    """Only their links held them: after closing they are gone, as soon as the kernel has freed them."""
    ids = {str(program.id) for program in datapath.programs()}
    datapath.close()
    assert ids & loaded_programs()
    remove_pins(pin_dir)
    assert not os.path.exists(pin_dir)
    deadline = time.monotonic() + patient(10)
    while ids & loaded_programs():
        assert time.monotonic() < deadline, "programs are still loaded"


def loaded_programs() -> set[str]:
    return set(re.findall(r"^(\d+): ", run("bpftool", "prog", "show"), re.M))


def test_closing_leaks_no_descriptor(config: NodeConfig, pin_dir: str, cache_dir: str) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        KernelDatapath.open(config, pin_dir=pin_dir, source_dir=SOURCES, cache_dir=cache_dir).close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_status_names_programs_maps_and_cost(node: Node) -> None:
    programs = {program.name: program for program in node.datapath.programs()}
    assert set(programs) == {
        f"{way}_{place}" for way in ("from", "to") for place in ("container", "overlay", "host", "netdev")
    }
    assert set(programs["from_container"].devices) == {node.web.ifindex, node.client.ifindex}
    for name in ("from_host", "to_host"):
        assert programs[name].devices == (node.host_ifindex,)
    for name in ("from_overlay", "to_overlay"):
        assert programs[name].devices == (node.datapath.config.vxlan_ifindex,)
    # The node was told of no NIC.
    assert programs["from_netdev"].devices == programs["to_netdev"].devices == ()
    assert all(0 < program.verified_insns < 100_000 for program in programs.values())
    maps = {status.name: status for status in node.datapath.maps(count=True)}
    assert (maps["endpoint_dev"].entries, maps["endpoint_dev"].type) == (2, "hash")
    assert maps["events"].entries is None
    # What programs keep for the time of one packet is not pinned.
    assert set(maps) - set(os.listdir(node.datapath.pins.maps)) <= {"ct_fresh", "policy_fresh"}
    assert set(os.listdir(node.datapath.pins.maps)) <= set(maps)
    assert set(os.listdir(node.datapath.pins.programs)) == set(programs)


def test_many_entries_come_and_go_in_batches(node: Node) -> None:
    keys = [PolicyKey(7, identity, 0, 6, 80, 16) for identity in range(1, 3001)]
    node.datapath.policy_put([(key, PolicyValue(rule_cookie=key.identity)) for key in keys])
    found = node.datapath.policy_entries(7)
    assert found == {key: PolicyValue(rule_cookie=key.identity) for key in keys}
    # Every second one is gone already: passed over, not counted.
    assert node.datapath.policy_delete(keys[::2]) == 1500
    assert node.datapath.policy_delete(keys) == 1500
    before = set(node.datapath.ipcache())
    prefixes = [f"10.{i}.0.0/{length}" for i in range(32, 96) for length in (16, 20, 24)]
    prefixes += [f"fd00:{i}::/{length}" for i in range(32, 96) for length in (32, 48, 56)]
    node.datapath.ipcache_put([(prefix, IpcacheValue(300)) for prefix in prefixes])
    assert set(node.datapath.ipcache()) - before == set(prefixes)
    assert node.datapath.ipcache_delete([*prefixes, "1.2.3.0/24", "fd99::/16"]) == len(prefixes)
    assert set(node.datapath.ipcache()) == before


def test_a_full_map_is_an_error(node: Node) -> None:
    entries = [(PolicyKey(7, identity, 0, 6, 80, 16), PolicyValue()) for identity in range(1, 5001)]
    with pytest.raises(BpfError, match=r"policy.*E2BIG"):
        node.datapath.policy_put(entries)


def test_many_endpoints_are_attached_and_listed(node: Node) -> None:
    rows = []
    for number in range(12):
        run("ip", "link", "add", f"lxct{number}", "type", "veth", "peer", "name", f"pt{number}")
        row = EndpointRow(
            socket.if_nametoindex(f"lxct{number}"), f"10.244.1.{100 + number}", 1001, 1, 100 + number,
            "02:00:00:00:05:01", "02:00:00:00:05:02",
        )  # fmt: skip
        node.datapath.attach_endpoint(row)
        rows.append(row)
    assert {row.ifindex for row in rows} <= {row.ifindex for row in node.datapath.endpoints()}


def test_populating_twice_changes_nothing(node: Node) -> None:
    before = node.datapath.endpoints(), node.datapath.ipcache()
    populate(node)
    assert (node.datapath.endpoints(), node.datapath.ipcache()) == before
