"""The ipcache's rules: normal form of prefixes, and who may change an entry."""

from __future__ import annotations

from dataclasses import replace

import pytest
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
    ],
)
def test_prefixes_have_one_form(text: str, normal: str) -> None:
    assert normalise_prefix(text, "prefix") == normal


@pytest.mark.parametrize("text", ["10.244.1.7/24", "10.0.0.0/33", "web", "", "fd00::1", "10.0.0.1/"])
def test_a_bad_prefix_names_its_field(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        normalise_prefix(text, "entries[2].prefix")
    assert caught.value.violations[0].field == "entries[2].prefix"
    assert repr(text) in str(caught.value)


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
