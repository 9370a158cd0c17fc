"""Choice of identity numbers, and the reserved table."""

from __future__ import annotations

from services.identity.model import reserved_identities, reserved_identity
from services.identity.numbers import Space
from services.identity.reserved import RESERVED_IDENTITIES, RESERVED_PREFIXES, is_reserved


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
        9: "world-ipv4",
        10: "world-ipv6",
    }


def test_unknown_is_nobodys_identity() -> None:
    assert not is_reserved(0)
    assert [identity.number for identity in reserved_identities()] == list(range(1, 11))


def test_a_reserved_identity_has_its_name_its_label_and_no_revision() -> None:
    identity = reserved_identity(6)
    assert (identity.name, tuple(identity.labels), identity.revision) == (
        "remote-node",
        ("reserved:remote-node",),
        0,
    )


def test_the_reserved_identity_of_a_family_has_the_labels_of_its_prefix() -> None:
    for prefix, number in RESERVED_PREFIXES.items():
        identity = reserved_identity(number)
        assert set(identity.labels) == {f"cidr:{prefix}", "reserved:world", f"reserved:{identity.name}"}


def test_the_search_starts_at_a_number_of_the_space() -> None:
    space = Space("cluster", 256, 65535, "")
    assert (space.clamp(7), space.clamp(300), space.clamp(65536)) == (256, 300, 256)
    assert (256 in space, 65535 in space, 255 in space, 65536 in space) == (True, True, False, False)
    assert space.capacity == 65280
