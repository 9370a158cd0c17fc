"""Maps of policy as they were before tiers, prefixes and audit mode: what they say is in force afterwards."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.loader.bpf.layout import Direction, PolicyKey, PolicyValue
from services.loader.bpf.maps import Map
from services.loader.bpf.native import check, lib
from tests.kernel.bpf.cluster import SILENCE, Pod
from tests.kernel.bpf.node import Rule
from tests.kernel.migration.compiled import maps_of
from tests.kernel.migration.flows import Flows
from tests.kernel.migration.upgrade import TCP, UDP, Upgrade

pytestmark = pytest.mark.kernel

# Beside what flows use: one port is allowed, one denied, and a range in which one is denied.
ALLOWED, DENIED, RANGE, HOLE = 9000, 9001, 9008, 9010
ADMIN = 1
NAMES = ("policy", "subject", "subject_array")


@pytest.fixture
def former(tmp_path: Path) -> Iterator[dict[str, Map]]:
    """Empty maps of the former layouts."""
    with maps_of("former.c", tmp_path) as made:
        yield made


def former_value(data: bytes) -> bytes:
    """An entry without its order."""
    return data[:8] + data[16:]


def former_subject(data: bytes) -> bytes:
    """A row without what its shapes say of other spaces."""
    return data[:16] + data[16:28] + data[36:48]


def former_versions(data: bytes) -> bytes:
    return data[:8] + former_subject(data[8:64]) + former_subject(data[64:])


FORMER: dict[str, Callable[[bytes], bytes]] = {
    "policy": former_value,
    "subject": former_subject,
    "subject_array": former_versions,
}


def put_back(upgrade: Upgrade, former: dict[str, Map]) -> None:
    """Pins maps of the former layouts, with the same content, in the place of those in force."""
    for name in NAMES:
        current = upgrade.pinned(name)
        former[name].put_many([(key, FORMER[name](value)) for key, value in current.items()])
        current.close()
        path = upgrade.pins.map_path(name)
        os.unlink(path)
        check(lib.bpf_obj_pin(former[name].fd, path.encode()), f"pin {path}")


def reaches(source: Pod, destination: Pod, port: int, *, seconds: float = SILENCE) -> bool:
    """Whether a connection is made, to a port where somebody listens."""
    with destination.socket(socket.SOCK_STREAM) as listener, source.socket(socket.SOCK_STREAM) as asking:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((destination.address, port))
        listener.listen()
        asking.settimeout(seconds)
        try:
            asking.connect((destination.address, port))
        except OSError:
            return False
        return True


def verdicts(upgrade: Upgrade) -> dict[int, bool]:
    ports = (ALLOWED, DENIED, RANGE, HOLE, RANGE + 7)
    return {port: reaches(upgrade.client, upgrade.web, port) for port in ports}


def test_an_upgrade_keeps_every_verdict_and_every_connection(
    upgrade: Upgrade, former: dict[str, Map]
) -> None:
    client = upgrade.client.row.identity
    upgrade.node.node.policy(
        upgrade.web.row.subject,
        ingress=[
            *(Rule(client, protocol, 8080) for protocol in (TCP, UDP)),
            Rule(client, TCP, ALLOWED, cookie=5),
            Rule(0, TCP, DENIED, deny=True),
            Rule(0, TCP, RANGE, prefix=13),
            Rule(client, TCP, HOLE, deny=True),
        ],
        egress=[],
        revision=77,
    )
    expected = {ALLOWED: True, DENIED: False, RANGE: True, HOLE: False, RANGE + 7: True}
    assert verdicts(upgrade) == expected
    with Flows(upgrade.client, upgrade.web) as flows:
        before = upgrade.open()
        rows, entries = before.subjects(), before.policy_entries()
        put_back(upgrade, former)
        after = upgrade.open()
        migrated = {each.name: each.why for each in after.report.migrated}
        assert migrated.keys() == set(NAMES)
        assert "value size 24 -> 32" in migrated["policy"]
        flows.progress()
        assert flows.problems == []
    assert upgrade.is_whole()
    assert after.subjects() == rows
    found = after.policy_entries()
    assert {key: (value.deny, value.rule_cookie) for key, value in found.items()} == {
        key: (value.deny, value.rule_cookie) for key, value in entries.items()
    }
    assert {(key.space, value.order, value.passes) for key, value in found.items()} == {(0, 0, False)}
    assert verdicts(upgrade) == expected
    assert not reaches(upgrade.web, upgrade.client, 8081)
    (counted,) = [value for value in after.policy_entries().values() if value.rule_cookie == 5]
    assert counted.packets >= 1
    # What the former layout had no room for has effect in the new one.
    number = upgrade.web.row.subject
    row = after.subjects()[number]
    key = PolicyKey(row.instance, client, Direction.INGRESS, TCP, HOLE, 16, space=ADMIN)
    after.policy_put([(key, PolicyValue(order=1))])
    shape = replace(row.ingress, spaces=1 << ADMIN, other_shapes=1 << 16)
    after.subject_put(number, replace(row, ingress=shape))
    assert reaches(upgrade.client, upgrade.web, HOLE)
