"""Other programs whose maps are laid out otherwise come into force under traffic."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernel.migration.flows import Flows
from tests.kernel.migration.upgrade import ROOM, Upgrade, fill_conntrack

pytestmark = pytest.mark.kernel

ENTRIES = 50_000


def without_counters(content: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What of the entries does not change while their flow goes on."""
    kept = ("created", "origin", "flags")
    return {
        key: {name: value[name] for name in kept} | {"owners": [side["owner"] for side in value["side"]]}
        for key, value in content.items()
    }


def test_an_upgrade_loses_no_connection_and_no_entry(upgrade: Upgrade, flows: Flows) -> None:
    upgrade.open()
    table = upgrade.pinned("ct4")
    fill_conntrack(table, ENTRIES)
    flows.progress()
    before = upgrade.content("ct4")
    idle = {key for key, value in before.items() if value["expires"] == 0xFFFFFF00}
    assert len(idle) == ENTRIES
    ipcache = upgrade.content("ipcache4")
    flows.progress()
    opened = upgrade.open(other=True)
    migrated = {each.name: each for each in opened.report.migrated}
    assert migrated.keys() == {"ct4", "ct6", "ipcache4", "ipcache6"}
    assert "value size 112 -> 120" in migrated["ct4"].why
    flows.progress()
    after = upgrade.content("ct4")
    assert len(after) == len(before)
    assert without_counters(after) == without_counters(before)
    assert {key: after[key] for key in idle} == {key: before[key] | {"test_added": 0} for key in idle}
    assert upgrade.content("ipcache4") == ipcache
    assert upgrade.is_other() and upgrade.is_whole()
    # And back again: what was added is dropped.
    upgrade.open()
    flows.progress()
    again = upgrade.content("ct4")
    assert {key: again[key] for key in idle} == {key: before[key] for key in idle}
    assert without_counters(again) == without_counters(before)
    assert not upgrade.is_other() and upgrade.is_whole()
    assert flows.problems == []
    table.close()


def test_flows_that_begin_later_are_in_the_new_map(upgrade: Upgrade) -> None:
    upgrade.open()
    upgrade.open(other=True)
    with Flows(upgrade.client, upgrade.web) as flows:
        flows.progress()
        counts = [value["packets"] for value in upgrade.content("ct4").values()]
        assert sum(sum(each) > 0 for each in counts) >= 5


def test_an_ordinary_restart_loads_nothing(upgrade: Upgrade, flows: Flows) -> None:
    first = upgrade.open()
    assert not first.report.adopted
    running = upgrade.running()
    second = upgrade.open()
    assert second.report.adopted and second.report.objects[0].load_seconds == 0
    assert upgrade.running() == running and upgrade.is_whole()
    assert second.subjects() == first.subjects() and second.endpoints() == first.endpoints()
    flows.progress()


def test_a_restart_finds_a_device_that_runs_something_else(upgrade: Upgrade, flows: Flows) -> None:
    upgrade.open()
    # By another loader of the same node, say: without the record.
    between = upgrade.open(state=False)
    third = upgrade.open()
    assert not third.report.adopted and upgrade.is_whole()
    with upgrade.node.namespace.entered():
        between.attach_endpoint(upgrade.web.row)
    assert not upgrade.is_whole()
    fourth = upgrade.open()
    assert fourth.report.adopted and upgrade.is_whole()
    flows.progress()


def test_other_sizes_are_another_map(upgrade: Upgrade, flows: Flows) -> None:
    upgrade.open()
    for size in (ROOM + 1000, 8192):
        opened = upgrade.open(sizes={"ct4": size, "policy": size})
        assert {each.name for each in opened.report.migrated} == {"ct4", "policy"}
        assert {each.name: each.max_entries for each in opened.maps()}["ct4"] == size
        flows.progress()
    assert upgrade.is_whole()
