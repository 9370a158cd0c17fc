"""Prefixes as identities see them."""

from __future__ import annotations

import pytest

from services.chassis.errors import InvalidArgument
from services.identity.prefixes import check_prefix, prefix_identity, reserved_prefix
from services.policy import prefixes


@pytest.mark.parametrize("text", ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.7/32", "2001:db8::/32", "::/0"])
def test_canonical_prefixes_are_taken(text: str) -> None:
    assert check_prefix(text, "prefixes[0]") == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8:0::/32", "2001:db8::/32"),
    ],
)
def test_other_spellings_are_told_the_canonical_one(text: str, expected: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_prefix(text, "prefixes[3]")
    assert (caught.value.reason, caught.value.metadata["expected"]) == ("PREFIX_INVALID", expected)
    assert caught.value.violations[0].field == "prefixes[3]"


@pytest.mark.parametrize("text", ["", "web", "10.0.0.0/33", "10.0.0/8", "fe80::1%eth0/128", "10.0.0.0/8 "])
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_prefix(text, "prefixes[0]")
    assert caught.value.reason == "PREFIX_INVALID"
    assert "expected" not in caught.value.metadata
    assert repr(text) in caught.value.violations[0].description


@pytest.mark.parametrize("prefix", ["10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0"])
def test_the_labels_are_those_that_policies_go_by(prefix: str) -> None:
    identity = prefix_identity(prefix, 0xFF0000, 7)
    assert set(identity.labels) == prefixes.prefix_labels(prefix).strings
    assert (identity.number, identity.revision, identity.name) == (0xFF0000, 7, "")


def test_whole_families_are_reserved() -> None:
    found = reserved_prefix("0.0.0.0/0"), reserved_prefix("::/0"), reserved_prefix("10.0.0.0/8")
    assert [identity.number if identity else None for identity in found] == [9, 10, None]
