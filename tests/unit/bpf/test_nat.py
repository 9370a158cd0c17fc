"""Masquerading's entries as the loader reads them, and which of them it removes."""

from __future__ import annotations

import socket
import struct as packer
from collections.abc import Iterable

import pytest

from services.loader.bpf import nat
from services.loader.bpf.nat import Kind, NatEntry

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58

PAIRS = {
    "ipv4": ("10.66.0.10", "198.51.100.7", "192.0.2.1", ICMP),
    "ipv6": ("fd66::a", "2001:db8:2::7", "2001:db8:1::1", ICMP6),
}


@pytest.fixture(params=PAIRS)
def ends(request: pytest.FixtureRequest) -> tuple[str, str, str, int]:
    """Pod, peer, node, and the echo protocol."""
    return PAIRS[request.param]


def pair(pod: str, peer: str, node: str, protocol: int, port: int, *, to: int = 61000) -> list[NatEntry]:
    echo = protocol in (ICMP, ICMP6)
    peer_port = port if echo else 80
    return [
        NatEntry(Kind.ORIGINAL, protocol, pod, port, peer, peer_port, node, to, 5),
        NatEntry(Kind.REVERSE, protocol, peer, to if echo else 80, node, to, pod, port, 5),
    ]


def conntrack(
    one: str, one_port: int, other: str, other_port: int, protocol: int, requester: int = 0
) -> bytes:
    """A key of ct4 or ct6, in the order given."""
    kind = socket.AF_INET6 if ":" in one else socket.AF_INET
    return (
        socket.inet_pton(kind, one)
        + socket.inet_pton(kind, other)
        + packer.pack("!HHBB", one_port, other_port, protocol, requester)
        + bytes(2)
    )


def entry(expires: int) -> bytes:
    return packer.pack("=I", expires) + bytes(108)


def removed(entries: Iterable[NatEntry], flows: dict[bytes, int], now: int = 100) -> list[NatEntry]:
    """What is collected of ``entries`` with conntrack entries that expire at these times."""
    packed = dict(each.pack() for each in entries)
    live = nat.live_keys(((key, entry(expires)) for key, expires in flows.items()), now)
    expired = nat.expired_pairs(packed.items(), live)
    return [NatEntry.unpack(key, packed[key]) for keys in expired.values() for key in keys]


def test_entries_survive_packing(ends: tuple[str, str, str, int]) -> None:
    for made in pair(*ends[:3], UDP, 53):
        assert NatEntry.unpack(*made.pack()) == made


def test_a_pair_goes_with_its_flow(ends: tuple[str, str, str, int]) -> None:
    pod, peer, node, _ = ends
    entries = pair(pod, peer, node, TCP, 40000)
    assert removed(entries, {}) == entries
    for key in (conntrack(pod, 40000, peer, 80, TCP), conntrack(peer, 80, pod, 40000, TCP)):
        assert removed(entries, {key: 100}) == []
        assert removed(entries, {key: 99}) == entries
    # Of what is left of a pair likewise.
    for each in entries:
        assert removed([each], {}) == [each]
        assert removed([each], {conntrack(peer, 80, pod, 40000, TCP): 100}) == []


def test_other_flows_keep_no_pair(ends: tuple[str, str, str, int]) -> None:
    pod, peer, node, _ = ends
    entries = pair(pod, peer, node, TCP, 40000)
    others = [
        conntrack(pod, 40000, peer, 80, UDP), conntrack(pod, 40001, peer, 80, TCP),
        conntrack(pod, 40000, peer, 81, TCP), conntrack(pod, 80, peer, 40000, TCP),
        conntrack(node, 61000, peer, 80, TCP),
    ]  # fmt: skip
    assert removed(entries, dict.fromkeys(others, 100)) == entries


def test_a_ping_lives_by_who_asks(ends: tuple[str, str, str, int]) -> None:
    """The peer's ping to the pod with the same identifier is another flow."""
    pod, peer, node, echo = ends
    entries = pair(pod, peer, node, echo, 9)
    assert removed(entries, {conntrack(pod, 9, peer, 9, echo, 1): 100}) == []
    assert removed(entries, {conntrack(peer, 9, pod, 9, echo, 2): 100}) == []
    assert removed(entries, {conntrack(pod, 9, peer, 9, echo, 2): 100}) == entries
    assert removed(entries, {conntrack(peer, 9, pod, 9, echo, 1): 100}) == entries


def test_a_pair_has_one_conntrack_key_with_the_pod_first(ends: tuple[str, str, str, int]) -> None:
    pod, peer, node, echo = ends
    for protocol, expected, turned in (
        (TCP, conntrack(pod, 7, peer, 80, TCP), conntrack(peer, 80, pod, 7, TCP)),
        (echo, conntrack(pod, 7, peer, 7, echo, 1), conntrack(peer, 7, pod, 7, echo, 2)),
    ):
        keys = {nat.conntrack_key(*each.pack()) for each in pair(pod, peer, node, protocol, 7)}
        assert keys == {expected}
        assert nat.turned(expected) == turned
        assert nat.turned(turned) == expected


class Table:
    """A map in memory. ``revive`` is put back as soon as the first walk is over."""

    def __init__(self, items: dict[bytes, bytes], revive: dict[bytes, bytes] | None = None) -> None:
        self.content = dict(items)
        self._revive = revive or {}

    def items(self) -> list[tuple[bytes, bytes]]:
        found = list(self.content.items())
        self.content.update(self._revive)
        return found

    def get(self, key: bytes) -> bytes | None:
        return self.content.get(key)

    def delete_many(self, keys: list[bytes]) -> int:
        return sum(self.content.pop(key, None) is not None for key in keys)


def test_a_flow_that_starts_anew_meanwhile_keeps_its_pair(ends: tuple[str, str, str, int]) -> None:
    pod, peer, node, _ = ends
    old, new = pair(pod, peer, node, TCP, 1), pair(pod, peer, node, TCP, 2, to=61001)
    table = Table(dict(each.pack() for each in (*old, *new)))
    flows = Table({}, revive={conntrack(peer, 80, pod, 2, TCP): entry(200)})
    assert nat.collect(table, flows, 100) == nat.NatStats(4, 2)  # type: ignore[arg-type]
    assert [NatEntry.unpack(*item) for item in table.items()] == new


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("10.0.0.0/8", (4, packer.pack("=I", 8) + bytes((10, 0, 0, 0)))),
        ("10.1.2.3/8", (4, packer.pack("=I", 8) + bytes((10, 0, 0, 0)))),
        ("192.0.2.1", (4, packer.pack("=I", 32) + bytes((192, 0, 2, 1)))),
        ("fd00::/8", (6, packer.pack("=I", 8) + b"\xfd" + bytes(15))),
        ("::1", (6, packer.pack("=I", 128) + bytes(15) + b"\1")),
    ],
)
def test_exclusions_have_keys(prefix: str, expected: tuple[int, bytes]) -> None:
    assert nat.exclusion_key(prefix) == expected


@pytest.mark.parametrize("prefix", ["", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "example.org"])
def test_what_is_no_prefix_is_named(prefix: str) -> None:
    with pytest.raises(ValueError, match=f"'{prefix}' is not a CIDR"):
        nat.exclusion_key(prefix)


def test_an_entry_without_an_address_is_refused() -> None:
    with pytest.raises(ValueError, match="not an address of a NAT entry"):
        NatEntry(Kind.ORIGINAL, TCP, "pod", 1, "192.0.2.1", 2, "192.0.2.2", 3, 0).pack()
