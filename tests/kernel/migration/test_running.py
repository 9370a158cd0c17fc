"""Maps resized and listed, programs reloaded, while the loader runs and flows cross the node."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.errors import FixedSize, UnknownMap, UnknownVariable, VerifierError
from services.loader.bpf.map_sizes import MapSizes
from services.loader.interfaces import (
    DatapathRefused,
    MapHasNoEntries,
    MapNotFound,
    MapNotResizable,
    MapSizeInvalid,
    MapTooSmall,
    PacketReport,
)
from services.loader.ipcache.table import Changes, Meaning
from services.loader.kernel import Kernel
from tests.kernel.bpf.conftest import SOURCES
from tests.kernel.migration.conftest import changed
from tests.kernel.migration.flows import Flows
from tests.kernel.migration.upgrade import ROOM, Upgrade, fill_conntrack

pytestmark = pytest.mark.kernel


@pytest.fixture
def kernel(upgrade: Upgrade) -> Iterator[Kernel]:
    def reopen(*, rebuild: bool, map_sizes: Mapping[str, int]) -> KernelDatapath:
        with upgrade.node.namespace.entered():
            return KernelDatapath.open(
                replace(upgrade.node.datapath.config, map_sizes=map_sizes),
                pin_dir=upgrade.pin_dir,
                source_dir=upgrade.sources_now,
                cache_dir=upgrade.cache_dir,
                state_dir=upgrade.state_dir,
                rebuild=rebuild,
            )

    sizes = MapSizes(upgrade.state_dir, upgrade.sizes)
    made = Kernel(reopen(rebuild=False, map_sizes=sizes.merged()), reopen, sizes=sizes)
    yield made
    made.close()


def test_a_map_is_resized_under_traffic_and_remembered(
    upgrade: Upgrade, kernel: Kernel, flows: Flows
) -> None:
    table = upgrade.pinned("ct4")
    fill_conntrack(table, 20_000)
    table.close()
    held = set(upgrade.content("ct4"))
    info = kernel.resize_map("ct4", 50_000)
    assert (info.max_entries, info.entries, info.resized) == (50_000, len(held), True)
    assert info.pressure == pytest.approx(len(held) / 50_000) and info.memory_bytes > 50_000 * 128
    flows.progress()
    assert set(upgrade.content("ct4")) == held
    path = Path(upgrade.state_dir, "map-sizes.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and json.loads(path.read_text()) == {"ct4": 50_000}
    assert MapSizes(upgrade.state_dir, upgrade.sizes).merged() == {"ct4": 50_000}
    with pytest.raises(MapTooSmall, match="do not fit into max_entries 10000") as caught:
        kernel.resize_map("ct4", 10_000)
    assert caught.value.metadata == {
        "map": "ct4", "entries": str(len(held)), "max_entries": "10000"
    }  # fmt: skip
    assert json.loads(path.read_text()) == {"ct4": 50_000}
    # Back to what the setting says.
    assert kernel.resize_map("ct4", 0).max_entries == ROOM
    assert json.loads(path.read_text()) == {}
    flows.progress()
    assert set(upgrade.content("ct4")) == held and upgrade.is_whole()


def test_what_is_no_size_is_refused_by_name(kernel: Kernel) -> None:
    with pytest.raises(MapNotFound, match=r"there is no map ct5; the maps are .*ct4"):
        kernel.resize_map("ct5", 10)
    for name in ("endpoint_slot", "metrics"):
        with pytest.raises(MapNotResizable, match=f"size of map {name}"):
            kernel.resize_map(name, 10)
    for name, size in (("ct4", -1), ("ct4", 1 << 31), ("events", 5000)):
        with pytest.raises(MapSizeInvalid, match=f"map {name} cannot have {size}"):
            kernel.resize_map(name, size)
    assert MapSizes().merged() == {}


def test_entries_are_listed_by_what_they_mean(upgrade: Upgrade, kernel: Kernel, flows: Flows) -> None:
    rows = {row.key: json.loads(row.value_json) for row in kernel.map_entries("ipcache4", 0)}
    assert rows[bytes(map(int, upgrade.web.address.split(".")))]["identity"] == upgrade.web.row.identity
    (first,) = kernel.map_entries("endpoint_slot", 1)
    assert set(json.loads(first.value_json)) >= {"ifindex", "pod_mac", "ipv4", "ipv6"}
    found = [json.loads(row.key_json) for row in kernel.map_entries("ct4", 0)]
    assert len(found) == 5
    per_cpu = next(iter(kernel.map_entries("metrics", 1)))
    assert isinstance(json.loads(per_cpu.value_json), list)
    with pytest.raises(MapNotFound):
        kernel.map_entries("nat4", 0)
    with pytest.raises(MapHasNoEntries, match="map events is a ringbuf"):
        kernel.map_entries("events", 0)


def test_a_reload_moves_all_devices_or_has_nothing_to_do(
    upgrade: Upgrade, kernel: Kernel, flows: Flows
) -> None:
    before = upgrade.running()
    same = kernel.reload(rebuild=False)
    assert same.unchanged and upgrade.running() == before
    # It asks for the devices in the namespace that it is called in.
    with upgrade.node.namespace.entered():
        rebuilt = kernel.reload(rebuild=True)
    assert not rebuilt.unchanged and rebuilt.endpoints == 2 and rebuilt.seconds >= rebuilt.attach_seconds > 0
    assert upgrade.running().isdisjoint(before) and upgrade.is_whole()
    programs = {program.name: program for program in rebuilt.programs}
    assert {each.device for each in programs["from_container"].attachments} == {"lxcweb", "lxcclient"}
    assert programs["from_container"].instructions > 1000 and programs["from_container"].memory_bytes > 0
    flows.progress()


def test_programs_that_do_not_load_leave_everything_as_it_was(
    upgrade: Upgrade, kernel: Kernel, flows: Flows, tmp_path: Path
) -> None:
    running = upgrade.running()
    broken = tmp_path / "broken"
    shutil.copytree(SOURCES, broken, ignore=shutil.ignore_patterns("tests"))
    changed(
        broken / "bpf_host.c",
        "	struct packet p = {",
        "	*(volatile int *)0 = 1;\n	struct packet p = {",
    )
    upgrade.sources_now = str(broken)
    with pytest.raises(DatapathRefused, match="load program from_host: ") as caught:
        kernel.reload(rebuild=False)
    assert caught.value.metadata["program"] == "from_host"
    log = Path(caught.value.metadata["log"])
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert isinstance(caught.value.__cause__, VerifierError)
    assert caught.value.__cause__.detail in log.read_text()
    changed(broken / "bpf_host.c", "	*(volatile int *)0 = 1;", "	not C;")
    with pytest.raises(DatapathRefused, match="does not compile") as refused:
        kernel.reload(rebuild=False)
    assert refused.value.metadata["file"] == "bpf_host.c"
    assert upgrade.running() == running and upgrade.is_whole()
    flows.progress()
    kernel.write_ipcache(Changes({"192.0.2.0/24": Meaning(301)}))
    assert "192.0.2.0/24" in kernel.ipcache()


def test_events_are_read_on_when_their_ring_is_another(upgrade: Upgrade, kernel: Kernel) -> None:
    seen: list[PacketReport] = []
    events = kernel.open_events(seen.append)
    descriptor = events.fileno()
    kernel.resize_map("events", 4 * os.sysconf("SC_PAGE_SIZE"))
    assert events.fileno() == descriptor
    with Flows(upgrade.client, upgrade.web):
        while events.consume(100):
            pass
    assert {report.destination_port for report in seen} == {8080}
    events.close()


def test_writers_wait_while_maps_are_exchanged(upgrade: Upgrade, kernel: Kernel) -> None:
    prefixes = [f"10.9.{number >> 8}.{number & 255}/32" for number in range(1000)]
    done = threading.Event()

    def write() -> None:
        for prefix in prefixes:
            kernel.write_ipcache(Changes({prefix: Meaning(300)}))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    for size in (5000, 6000, 7000):
        kernel.resize_map("ipcache4", size)
    writer.join()
    assert done.is_set() and set(prefixes) <= set(kernel.ipcache())


def test_what_the_node_does_not_use_is_not_loaded(upgrade: Upgrade) -> None:
    opened = upgrade.open()
    assert not [name for name in upgrade.pins.map_names() if name.startswith("nat")]
    config = upgrade.node.datapath.config
    with upgrade.node.namespace.entered():
        full = KernelDatapath.open(
            replace(config, masquerade=True, vxlan_ifindex=0),
            pin_dir=upgrade.pin_dir, source_dir=SOURCES, cache_dir=upgrade.cache_dir,
        )  # fmt: skip
    upgrade.opened.append(full)
    assert {"nat4", "nat6", "nat_exclude4", "nat_exclude6", "nat_state"} <= set(upgrade.pins.map_names())
    assert not {"from_overlay", "to_overlay"} & {each.name for each in full.programs()}
    assert set(full.report.removed) == {"from_overlay", "to_overlay"}
    assert {each.name for each in opened.programs()} - {each.name for each in full.programs()} == {
        "from_overlay", "to_overlay"
    }  # fmt: skip
    again = upgrade.open()
    assert {name for name in again.report.removed if name.startswith("nat")} == {
        "nat4", "nat6", "nat_exclude4", "nat_exclude6", "nat_state"
    }  # fmt: skip


def test_a_configuration_that_is_not_the_programs_is_refused(
    upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownMap, match=r"names map ct9; the maps are .*ct4"):
        upgrade.open(sizes={"ct9": 5})
    with pytest.raises(FixedSize, match="map metrics"):
        upgrade.open(sizes={"metrics": 5})
    config = type(upgrade.node.datapath.config)
    constants = config.constants
    monkeypatch.setattr(config, "constants", lambda self: constants(self) | {"speed": bytes(4)})
    with pytest.raises(UnknownVariable, match=r"declare no constant speed; known: .*vxlan_port"):
        upgrade.open()
    monkeypatch.setattr(
        config, "constants", lambda self: {k: v for k, v in constants(self).items() if k != "mtu"}
    )
    with pytest.raises(UnknownVariable, match="declares the constant mtu, which the configuration does not"):
        upgrade.open()
    assert upgrade.is_whole()
