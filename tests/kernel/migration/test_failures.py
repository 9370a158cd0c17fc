"""Whatever fails or dies while maps are migrated, the node is wholly before or wholly after."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace

import pytest

from services.loader import failpoints
from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.errors import BpfError, MapFull
from services.loader.bpf.pins import PinDirectory
from services.loader.bpf.recovery import Recovered, recover
from services.loader.bpf.switching import DevicePlace, Switchboard
from tests.kernel.migration.flows import Flows
from tests.kernel.migration.upgrade import Upgrade, fill_conntrack

pytestmark = pytest.mark.kernel

ENTRIES = 5000

# What is not decided yet is undone, and what is decided but not done; later there is no way back.
UNDONE = (
    "load.compiled", "load.loaded", "migrate.created", "migrate.filled", "migrate.committed",
    "attach.replaced", "attach.filter", "migrate.switched", "migrate.caught_up",
)  # fmt: skip
COMPLETED = ("migrate.map_pinned", "migrate.map_pinned:2", "pin.program", "pin.program:5", "migrate.done")
BEFORE = UNDONE[:4]
AFTER = (*UNDONE[4:], *COMPLETED)


def board(upgrade: Upgrade) -> Switchboard:
    places = [DevicePlace(*each) for each in upgrade.node.datapath.places()]
    return Switchboard(PinDirectory(upgrade.pin_dir), places)


def fail_at(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    name, _, number = place.partition(":")
    monkeypatch.setattr(failpoints, "_chosen", f"{name}!EIO:{number or 1}")
    monkeypatch.setattr(failpoints, "_counts", {})


@pytest.mark.parametrize("place", [*UNDONE, *COMPLETED])
def test_an_error_leaves_all_as_it_was_or_is_overcome(
    upgrade: Upgrade, flows: Flows, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    upgrade.open()
    table = upgrade.pinned("ct4")
    fill_conntrack(table, ENTRIES)
    table.close()
    before = set(upgrade.content("ct4"))
    descriptors = len(os.listdir("/proc/self/fd"))
    fail_at(monkeypatch, place)
    if place in UNDONE:
        with pytest.raises(BpfError, match=f"failpoint {place}") as caught:
            upgrade.open(other=True)
        assert caught.value.errno == errno.EIO
        assert len(os.listdir("/proc/self/fd")) == descriptors
    else:
        upgrade.open(other=True)
    monkeypatch.setattr(failpoints, "_chosen", "")
    assert upgrade.is_whole()
    assert upgrade.is_other() == (place in COMPLETED)
    flows.progress()
    assert set(upgrade.content("ct4")) == before
    upgrade.open(other=True)
    assert upgrade.is_whole() and upgrade.is_other()
    flows.progress()
    assert set(upgrade.content("ct4")) == before


@pytest.mark.parametrize("place", [*BEFORE, *AFTER])
def test_a_process_that_dies_leaves_one_of_two_states(upgrade: Upgrade, flows: Flows, place: str) -> None:
    upgrade.open()
    table = upgrade.pinned("ct4")
    fill_conntrack(table, ENTRIES)
    table.close()
    before = set(upgrade.content("ct4"))
    programs = upgrade.running()
    assert upgrade.open_in_child(place) == -signal.SIGKILL
    # While nobody looks after it, the node forwards.
    flows.progress()
    with upgrade.node.namespace.entered():
        found = recover(upgrade.pins, board(upgrade))
        assert recover(upgrade.pins, board(upgrade)) is Recovered.NOTHING
    flows.progress()
    assert upgrade.is_whole()
    assert upgrade.is_other() == (place in AFTER)
    assert (upgrade.running() == programs) == (place in BEFORE)
    wanted = Recovered.NOTHING if place in ("load.compiled", "load.loaded", "migrate.done") else None
    assert found is (wanted or (Recovered.UNDONE if place in BEFORE else Recovered.COMPLETED))
    assert set(upgrade.content("ct4")) == before
    upgrade.open(other=True)
    flows.progress()
    assert upgrade.is_whole() and upgrade.is_other()
    assert set(upgrade.content("ct4")) == before


def test_what_old_programs_wrote_while_nobody_was_there_is_carried_over(upgrade: Upgrade) -> None:
    upgrade.open()
    assert upgrade.open_in_child("migrate.committed") == -signal.SIGKILL
    with Flows(upgrade.client, upgrade.web) as flows:
        flows.progress()
        began = {key for key, value in upgrade.content("ct4").items() if sum(value["packets"]) > 0}
        assert len(began) == 5
        upgrade.open(other=True)
        assert upgrade.is_other() and began <= set(upgrade.content("ct4"))
        flows.progress()


@pytest.mark.parametrize("place", ["load.loaded", "attach.replaced", "attach.filter", "pin.program:3"])
def test_without_a_map_to_migrate_an_error_changes_nothing_either(
    upgrade: Upgrade, flows: Flows, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    upgrade.open()
    running, pinned = upgrade.running(), upgrade.pinned_programs()
    fail_at(monkeypatch, place)
    with pytest.raises(BpfError, match="failpoint"):
        upgrade.open(state=False)
    assert (upgrade.running(), upgrade.pinned_programs()) == (running, pinned)
    assert upgrade.is_whole()
    flows.progress()


def test_a_first_start_that_fails_leaves_nothing(upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch) -> None:
    other = f"{upgrade.pin_dir}-first"
    fail_at(monkeypatch, "pin.program:2")
    config = upgrade.node.datapath.config
    with upgrade.node.namespace.entered(), pytest.raises(BpfError, match="failpoint"):
        KernelDatapath.open(
            replace(config, host_ifindex=upgrade.web.row.ifindex, vxlan_ifindex=0),
            pin_dir=other,
            source_dir=upgrade.other_sources,
            cache_dir=upgrade.cache_dir,
        )
    assert not os.listdir(os.path.join(other, "maps")) and not os.listdir(os.path.join(other, "progs"))


def test_a_map_that_holds_too_much_is_refused_before_anything_is_touched(
    upgrade: Upgrade, flows: Flows
) -> None:
    upgrade.open()
    table = upgrade.pinned("ct4")
    fill_conntrack(table, ENTRIES)
    running = upgrade.running()
    with pytest.raises(MapFull, match=r"map ct4 holds 50.. entries, which do not fit into max_entries 4096"):
        upgrade.open(sizes={"ct4": 4096})
    assert upgrade.running() == running and upgrade.is_whole()
    flows.progress()
    table.close()
