"""The ipcache's rules: normal form of prefixes, and who may change an entry."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from services.chassis.errors import InvalidArgument
from services.identity.ipcache import Changes, Entry, normalise_prefix, plan_publish, plan_withdraw

WEB = Entry("10.244.1.7/32", 1001, "node-1", "172.31.0.1", "shop/web", 5)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("10.244.1.7", "10.244.1.7/32"),
        ("10.244.1.7/32", "10.244.1.7/32"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::7", "fd00::7/128"),
        ("fd00:10:244::1:7/128", "fd00:10:244::1:7/128"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
    ],
)
def test_prefixes_have_one_form(text: str, normal: str) -> None:
    assert normalise_prefix(text, "prefix") == normal


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "web", "", "fd00::1/129", "10.0.0.1/", "fe80::1%eth0", "fe80::%1/64"]
)
def test_a_bad_prefix_names_its_field(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        normalise_prefix(text, "entries[2].prefix")
    assert caught.value.violations[0].field == "entries[2].prefix"
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.244.1.7/24", "10.244.1.0/24"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("10.0.0.0/08", "10.0.0.0/8"),
        ("fd00::1/64", "fd00::/64"),
        ("FD00::/64", "fd00::/64"),
        ("fd00::00:7", "fd00::7/128"),
        ("fd00:0:0:0:0:0:0:7/128", "fd00::7/128"),
        ("::ffff:10.0.0.7", "10.0.0.7/32"),
        ("::ffff:a00:0/104", "10.0.0.0/8"),
    ],
)
def test_what_is_written_otherwise_is_refused_with_the_canonical_form(text: str, expected: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        normalise_prefix(text, "prefix")
    assert caught.value.reason == "PREFIX_INVALID"
    assert caught.value.metadata == {"field": "prefix", "value": text, "expected": expected}
    assert expected in caught.value.violations[0].description
    assert normalise_prefix(expected, "prefix") == expected


@given(st.ip_addresses(v=6), st.integers(0, 128))
def test_every_network_is_its_own_canonical_form(address: IPv6Address, length: int) -> None:
    network = IPv6Network((address, length), strict=False)
    if not network.subnet_of(IPv6Network("::ffff:0:0/96")):
        assert normalise_prefix(str(network), "prefix") == str(network)


def test_publishing_what_is_there_changes_nothing() -> None:
    assert plan_publish([WEB], {WEB.prefix: replace(WEB, revision=9)}) == Changes()


def test_the_last_of_two_entries_for_a_prefix_counts() -> None:
    other = replace(WEB, identity=1002)
    assert plan_publish([other, WEB], {}).puts == (WEB,)


def test_publishing_takes_an_entry_over_and_says_from_whom() -> None:
    moved = replace(WEB, node="node-2")
    changes = plan_publish([moved], {WEB.prefix: WEB})
    assert changes == Changes(puts=(moved,), taken_over=(WEB,))


def test_a_replacement_withdraws_what_is_not_named() -> None:
    gone = replace(WEB, prefix="10.244.1.8/32")
    changes = plan_publish([WEB], {WEB.prefix: WEB}, replaced=[WEB, gone])
    assert changes == Changes(removals=(gone,))


def test_a_late_withdrawal_leaves_the_new_holders_entry() -> None:
    moved = replace(WEB, node="node-2")
    assert plan_withdraw("node-1", [moved]) == Changes()
    assert plan_withdraw("node-2", [moved]) == Changes(removals=(moved,))


class Ownership(RuleBasedStateMachine):
    """Two nodes publish and withdraw at random; the entry is always the last publisher's."""

    nodes = st.sampled_from(["node-1", "node-2"])
    prefixes = st.sampled_from(["10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"])

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[str, Entry] = {}
        self.model: dict[str, str] = {}

    def apply(self, changes: Changes) -> None:
        for entry in changes.puts:
            self.table[entry.prefix] = entry
        for entry in changes.removals:
            del self.table[entry.prefix]
        assert {prefix: entry.node for prefix, entry in self.table.items()} == self.model

    @rule(node=nodes, prefix=prefixes, identity=st.integers(256, 258))
    def publish(self, node: str, prefix: str, identity: int) -> None:
        self.model[prefix] = node
        self.apply(plan_publish([Entry(prefix, identity, node)], self.table))

    @rule(node=nodes, named=st.sets(prefixes))
    def replace_node(self, node: str, named: set[str]) -> None:
        owned = [entry for entry in self.table.values() if entry.node == node]
        self.model = {p: n for p, n in self.model.items() if n != node or p in named}
        self.model.update(dict.fromkeys(named, node))
        self.apply(plan_publish([Entry(p, 256, node) for p in sorted(named)], self.table, replaced=owned))

    @rule(node=nodes, named=st.sets(prefixes))
    def withdraw(self, node: str, named: set[str]) -> None:
        self.model = {p: n for p, n in self.model.items() if n != node or p not in named}
        self.apply(plan_withdraw(node, [self.table[p] for p in named if p in self.table]))


TestOwnership = Ownership.TestCase
