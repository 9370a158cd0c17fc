"""Rows and keys: what goes in comes out, and what is wrong is refused with its value."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from services.loader.bpf.layout import (
    SHAPE_ANY_PROTOCOL,
    Direction,
    DirectionShape,
    EndpointRow,
    IpcacheValue,
    PolicyKey,
    PolicyValue,
    SubjectRow,
    direction_shape,
    pack_lpm_key,
    split_prefix,
    unpack_lpm_key,
)

u32 = some.integers(0, 2**32 - 1)
shapes = some.builds(
    DirectionShape,
    *(some.booleans(), some.booleans(), u32, u32, some.booleans(), some.booleans()),
    some.integers(0, 2**16 - 1),
    u32,
)


@given(some.builds(SubjectRow, u32, u32, some.integers(0, 2**64 - 1), shapes, shapes))
def test_a_subject_row_survives(row: SubjectRow) -> None:
    assert SubjectRow.unpack(row.pack()) == row


@given(
    *(u32, u32, some.sampled_from([0, 1]), some.integers(1, 255), some.integers(0, 65535)),
    *(some.integers(0, 16), some.sampled_from([0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14])),
)
def test_a_policy_key_survives(
    instance: int, identity: int, way: int, protocol: int, port: int, length: int, space: int
) -> None:
    masked = port & ~(0xFFFF >> length) & 0xFFFF
    key = PolicyKey(instance, identity, way, protocol, masked, length, space)
    assert PolicyKey.unpack(key.pack()) == key


def test_rows_and_values_survive() -> None:
    row = EndpointRow(7, "10.0.0.1", 300, 2, 5, "02:00:00:00:00:01", "02:00:00:00:00:02", 1)
    both = replace(row, ipv6="fd00::a", rate=125_000_000)
    for each in (row, both, replace(both, ipv4="")):
        assert EndpointRow.unpack(each.pack()) == each
    for value in (IpcacheValue(2), IpcacheValue(300, "172.31.0.2", 4)):
        assert IpcacheValue.unpack(value.pack()) == value
    for entry in (PolicyValue(True, 9, 8080, 3, 4), PolicyValue(passes=True, order=1000 << 16 | 7)):
        assert PolicyValue.unpack(entry.pack()) == entry


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((1, 1, 0, 6, 80, 17), "port_prefix is 17"),
        ((1, 1, 0, 6, 80, 8), "port 80 has bits beyond its prefix of 8"),
        ((1, 1, 0, 0, 80, 16), "a port needs a protocol"),
        ((1, 1, 2, 6, 80, 16), "direction is 2"),
        ((1, 1, 0, 6, 80, 16, 3), "space is 3"),
        ((1, 1, 0, 6, 80, 16, 16), "space is 16"),
    ],
)
def test_an_impossible_policy_key_is_refused(fields: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyKey(*fields)


@pytest.mark.parametrize(
    ("prefix", "family"),
    [
        *(
            (each, "IPv4")
            for each in ("10.0.0.0/33", "10.0.0.1/24", "10.0.0", "10.0.0.0/", "10.0.0.0/-1", "")
        ),
        *(
            (each, "IPv6")
            for each in ("fd00::/129", "fd00::1/64", "fd00:::1", "fd00::/", "fd00::/-1", "::/x")
        ),
        *((each, "IPv6") for each in ("fe80::1%eth0", "fd00::g", "[fd00::1]")),
    ],
)
def test_what_is_no_prefix_is_refused_with_its_text(prefix: str, family: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(repr(prefix))} is not an {family}"):
        split_prefix(prefix)


@pytest.mark.parametrize(
    "prefix",
    [
        *("0.0.0.0/0", "10.0.0.0/8", "10.1.2.0/23", "10.1.2.3/32"),
        *("::/0", "fd00::/8", "2001:db8:0:fffe::/63", "fd00:244:1::10/128"),
    ],
)
def test_a_prefix_survives(prefix: str) -> None:
    assert unpack_lpm_key(pack_lpm_key(*split_prefix(prefix))) == prefix


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("FD00:0:0::1", "fd00::1/128"),
        ("fd00:0244:1:0:0:0:0:10", "fd00:244:1::10/128"),
        ("fd00:0::/32", "fd00::/32"),
    ],
)
def test_an_address_is_a_whole_prefix_in_canonical_text(text: str, canonical: str) -> None:
    assert unpack_lpm_key(pack_lpm_key(*split_prefix(text))) == canonical


@pytest.mark.parametrize("mac", ["02:00:00:00:00", "02:00:00:00:00:0g", "2:0:0:0:0:1", ""])
def test_what_is_no_mac_is_refused(mac: str) -> None:
    with pytest.raises(ValueError, match="is not a MAC address"):
        EndpointRow(1, "10.0.0.1", 1, 1, 1, mac, "02:00:00:00:00:02").pack()


def test_a_shape_names_what_there_is() -> None:
    entries = [
        (PolicyKey(1, 300, Direction.INGRESS, 6, 80, 16), PolicyValue()),
        (PolicyKey(1, 300, Direction.INGRESS, 6, 0, 0), PolicyValue()),
        (PolicyKey(1, 0, Direction.INGRESS, 6, 1024, 6), PolicyValue(deny=True)),
        (PolicyKey(1, 0, Direction.INGRESS, 0), PolicyValue()),
        (PolicyKey(1, 300, Direction.EGRESS, 0), PolicyValue()),
    ]
    ingress = direction_shape(entries, Direction.INGRESS, enforced=True)
    assert ingress == DirectionShape(True, True, 1 << 16 | 1, 1 << 6 | SHAPE_ANY_PROTOCOL)
    egress = direction_shape(entries, Direction.EGRESS, enforced=False)
    assert egress == DirectionShape(False, False, SHAPE_ANY_PROTOCOL, 0)
    assert direction_shape([], Direction.EGRESS, enforced=True) == DirectionShape(enforced=True)


def test_a_shape_tells_entries_of_other_spaces_apart() -> None:
    entries = [
        (PolicyKey(1, 300, Direction.INGRESS, 6, 80, 16), PolicyValue()),
        (PolicyKey(1, 0, Direction.INGRESS, 0, space=1), PolicyValue(deny=True)),
        (PolicyKey(1, 0xFF0001, Direction.INGRESS, 6, 1024, 6, space=14), PolicyValue(passes=True)),
        (PolicyKey(1, 300, Direction.EGRESS, 17, space=2), PolicyValue()),
    ]
    ingress = direction_shape(entries, Direction.INGRESS, enforced=False, audit_enforced=True)
    assert ingress == DirectionShape(
        identity_shapes=1 << 16,
        audit_enforced=True,
        spaces=1 << 1 | 1 << 14,
        other_shapes=SHAPE_ANY_PROTOCOL | 1 << 6,
    )
    egress = direction_shape(entries, Direction.EGRESS, enforced=False)
    assert egress == DirectionShape(spaces=1 << 2, other_shapes=1)
