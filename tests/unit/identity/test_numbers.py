"""Choice of identity numbers, and the reserved table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.identity.model import reserved_identities, reserved_identity
from services.identity.numbers import clamp, first_gap, rotation
from services.identity.reserved import CLUSTER_FIRST, CLUSTER_LAST, RESERVED_IDENTITIES, is_reserved


def test_reserved_numbers_and_names_are_ciliums() -> None:
    assert dict(RESERVED_IDENTITIES) == {
        0: "unknown",
        1: "host",
        2: "world",
        3: "unmanaged",
        4: "health",
        5: "init",
        6: "remote-node",
        7: "kube-apiserver",
        8: "ingress",
    }


def test_unknown_is_nobodys_identity() -> None:
    assert not is_reserved(0)
    assert [identity.number for identity in reserved_identities()] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_reserved_identity_has_its_name_its_label_and_no_revision() -> None:
    identity = reserved_identity(6)
    assert (identity.name, tuple(identity.labels), identity.revision) == (
        "remote-node",
        ("reserved:remote-node",),
        0,
    )


def test_the_search_starts_at_the_cursor_and_wraps() -> None:
    assert rotation(CLUSTER_FIRST) == ((CLUSTER_FIRST, CLUSTER_LAST),)
    assert rotation(300) == ((300, CLUSTER_LAST), (CLUSTER_FIRST, 299))
    assert rotation(CLUSTER_LAST + 1) == ((CLUSTER_FIRST, CLUSTER_LAST),)
    assert clamp(7) == CLUSTER_FIRST


@given(st.integers(256, 1000), st.sets(st.integers(0, 80)))
def test_first_gap_is_the_least_number_not_used(start: int, offsets: set[int]) -> None:
    used = sorted(start + offset for offset in offsets)
    assert first_gap(start, used) == next(n for n in range(start, start + 82) if n not in used)
