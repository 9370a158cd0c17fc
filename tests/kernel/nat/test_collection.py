"""The loader's part: pairs go when their flow's conntrack entry does."""

from __future__ import annotations

import struct

import pytest

from services.loader.bpf.nat import Kind, NatStats, collect
from tests.kernel.nat.frames import TCP, Family, Packet, build
from tests.kernel.nat.translator import Translator

pytestmark = pytest.mark.kernel

NOW = 1000


def note_flow(nat: Translator, packet: Packet, expires: int) -> None:
    """As from_container would; ends in the order in which the programs of this object sort them."""
    name = "ct6" if packet.family.v6 else "ct4"
    source, destination = packet.family.pack(packet.source), packet.family.pack(packet.destination)
    sport, dport = packet.ports
    requester = 1 if packet.protocol == packet.family.echo else 0
    key = source + destination + struct.pack("!HHBBH", sport, dport, packet.protocol, requester, 0)
    value = struct.pack("=I", expires)
    nat.maps[name].put(key, value.ljust(nat.maps[name].definition.value_size, b"\0"))


def test_pairs_of_flows_that_are_gone_or_expired_are_removed(nat: Translator, family: Family) -> None:
    alive = build(family, family.pod, family.peer, TCP, 1, 80)
    expired = build(family, family.pod, family.peer, TCP, 2, 80)
    gone = build(family, family.pod, family.peer, TCP, 3, 80)
    ping = build(family, family.pod, family.peer, family.echo, 4, 4)
    left = {packet: nat.leave(packet).packet for packet in (alive, expired, gone, ping)}
    for packet, expires in ((alive, NOW), (expired, NOW - 1), (ping, NOW + 1)):
        note_flow(nat, packet, expires)
    conntrack = nat.maps["ct6" if family.v6 else "ct4"]
    assert collect(nat.table(family), conntrack, NOW) == NatStats(seen=8, removed=4)
    assert {entry.source_port for entry in nat.entries(Kind.ORIGINAL)} == {1, 4}
    assert nat.arrive(left[gone].answered()).untouched
    for packet in (alive, ping):
        assert nat.arrive(left[packet].answered()).packet == packet.answered()
    assert collect(nat.table(family), conntrack, NOW + 2) == NatStats(seen=4, removed=4)
    assert nat.entries() == []


def test_half_a_pair_is_removed_too(nat: Translator, family: Family) -> None:
    for kind in Kind:
        nat.leave(build(family, family.pod, family.peer, TCP, 5, 80))
        (lost,) = nat.entries(kind)
        nat.forget(lost)
        conntrack = nat.maps["ct6" if family.v6 else "ct4"]
        assert collect(nat.table(family), conntrack, NOW) == NatStats(seen=1, removed=1)


def test_a_full_table_is_walked_whole(nat: Translator, family: Family) -> None:
    """More entries than one batch has."""
    for sport in range(1, 3001):
        nat.leave(build(family, family.pod, family.peer, TCP, sport, 1 + sport % 7))
    conntrack = nat.maps["ct6" if family.v6 else "ct4"]
    assert collect(nat.table(family), conntrack, NOW) == NatStats(seen=6000, removed=6000)
