"""What a node's policy mode makes of a subject's row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.loader.bpf.layout import SHAPE_ANY_PROTOCOL, DirectionShape
from services.loader.kernel import Enforcement, PolicyMode, subject_row
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
from services.loader.policy.plan import Realized
from services.loader.policy.shape import shape_of

ENTRIES = {
    EntryKey(INGRESS, 256, 6, 80, 16): EntryValue(False),
    EntryKey(INGRESS, 0, 17, 53, 16): EntryValue(True),
    EntryKey(EGRESS, 257, 0, 0, 0): EntryValue(False),
}
REALIZED = Realized(3, 4, 5, True, False, ENTRIES, shape_of(ENTRIES))
TIERS = {
    EntryKey(INGRESS, 256, 6, 80, 16, ADMIN): EntryValue(True, 1, order=4),
    EntryKey(INGRESS, 0, 0, 0, 0, BASELINE): EntryValue(True, 2),
    EntryKey(INGRESS, 0xFF0000, 6, 0, 0, AUDIT | BY_ADDRESS): EntryValue(False, 3),
}
PORT = 1 << 16


def shapes(enforcement: Enforcement, *, audit: bool = False) -> tuple[DirectionShape, DirectionShape]:
    row = subject_row(REALIZED, PolicyMode(enforcement, audit))
    assert (row.instance, row.epoch, row.revision) == (3, 4, 5)
    return row.ingress, row.egress


def test_by_default_a_direction_is_enforced_where_a_policy_selects() -> None:
    assert subject_row(REALIZED) == subject_row(REALIZED, PolicyMode("default"))
    assert shapes("default") == (
        DirectionShape(True, True, PORT, PORT),
        DirectionShape(False, False, SHAPE_ANY_PROTOCOL, 0),
    )


def test_always_enforces_both_directions_and_keeps_the_entries() -> None:
    assert shapes("always") == (
        DirectionShape(True, True, PORT, PORT),
        DirectionShape(True, False, SHAPE_ANY_PROTOCOL, 0),
    )


def test_never_enforces_nothing_and_looks_at_no_entry() -> None:
    assert shapes("never") == (DirectionShape(False, False, 0, 0), DirectionShape(False, False, 0, 0))


def test_other_spaces_are_told_of_beside_the_normal_one() -> None:
    realized = Realized(3, 4, 5, False, False, TIERS, shape_of(TIERS), (True, False))
    spaces = 1 << ADMIN | 1 << BASELINE | 1 << (AUDIT | BY_ADDRESS)
    expected = DirectionShape(audit_enforced=True, spaces=spaces, other_shapes=PORT | SHAPE_ANY_PROTOCOL | 1)
    assert subject_row(realized).ingress == expected
    assert subject_row(realized).egress == DirectionShape()
    assert DirectionShape.unpack(expected.pack()) == expected
    assert realized.shape.by_address and not REALIZED.shape.by_address
    assert subject_row(realized, PolicyMode("never")).ingress == DirectionShape()
    assert subject_row(realized, PolicyMode("always")).ingress == replace(expected, enforced=True)


@pytest.mark.parametrize("enforcement", ["default", "always", "never"])
def test_audit_changes_nothing_but_what_becomes_of_denied_packets(enforcement: Enforcement) -> None:
    for plain, audited in zip(shapes(enforcement), shapes(enforcement, audit=True), strict=True):
        assert not plain.audit and audited.audit
        assert DirectionShape.unpack(audited.pack()) == audited
        assert (plain.enforced, plain.has_deny, plain.identity_shapes, plain.wildcard_shapes) == (
            audited.enforced,
            audited.has_deny,
            audited.identity_shapes,
            audited.wildcard_shapes,
        )
