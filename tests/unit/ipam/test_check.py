"""What a check of a node's addresses finds."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest
from fimbria.ipam.v1 import ipam_pb2

from services.chassis.errors import InvalidArgument
from services.ipam.check import Finding, HeldAddress, Kind, UsedBy, compare
from services.ipam.check_api import endpoints_of, finding_message

NODE = "node-1"
SECOND = 1_000_000_000
NOW = 1_000_000 * SECOND


def packed(address: str) -> bytes:
    return ip_address(address).packed


def held(
    *rows: tuple[str, str], node: str = NODE, created_ns: int = NOW - 100 * SECOND
) -> dict[bytes, HeldAddress]:
    return {packed(address): HeldAddress(packed(address), node, owner, created_ns) for owner, address in rows}


def uses(owner: str, *addresses: str) -> UsedBy:
    return UsedBy(owner, tuple(map(packed, addresses)))


def found(
    rows: dict[bytes, HeldAddress], *endpoints: UsedBy, min_age: int = 60
) -> list[tuple[str, str, str, tuple[str, ...]]]:
    findings = compare(NODE, rows, endpoints, now_ns=NOW, min_age_ns=min_age * SECOND)
    return [
        (
            one.kind.name,
            str(ip_address(one.address)),
            f"{one.holder.node}:{one.holder.owner}" if one.holder else "",
            one.users,
        )
        for one in findings
    ]


def test_what_agrees_is_no_finding() -> None:
    rows = held(("a/eth0", "10.0.0.2"), ("a/eth0", "fd00::2"), ("b/eth0", "10.0.0.3"))
    assert found(rows, uses("a/eth0", "10.0.0.2", "fd00::2"), uses("b/eth0")) == []


def test_an_owner_without_endpoint_leaks_each_of_its_addresses_in_order() -> None:
    rows = held(("z/eth0", "fd00::2"), ("z/eth0", "10.0.0.9"), ("y/eth0", "10.0.0.10"))
    assert found(rows) == [
        ("LEAKED", "10.0.0.9", "node-1:z/eth0", ()),
        ("LEAKED", "10.0.0.10", "node-1:y/eth0", ()),
        ("LEAKED", "fd00::2", "node-1:z/eth0", ()),
    ]


@pytest.mark.parametrize(
    ("age", "leaks"), [(59, 0), (60, 1), (-5, 0)], ids=["young", "old enough", "from the future"]
)
def test_what_was_just_allocated_is_not_called_leaked(age: int, leaks: int) -> None:
    rows = held(("z/eth0", "10.0.0.9"), created_ns=NOW - age * SECOND)
    assert len(found(rows)) == leaks


def test_an_endpoint_that_is_being_made_keeps_what_its_owner_holds() -> None:
    assert found(held(("a/eth0", "10.0.0.2")), uses("a/eth0")) == []


def test_what_is_held_on_other_nodes_is_no_leak_of_this_one() -> None:
    assert found(held(("a/eth0", "10.0.0.2"), node="node-2")) == []


def test_an_address_that_nobody_holds_is_told_with_its_user() -> None:
    assert found({}, uses("a/eth0", "10.0.0.2")) == [("NOT_HELD", "10.0.0.2", "", ("a/eth0",))]


def test_another_holder_is_told_and_not_called_leaked_while_its_address_is_used() -> None:
    rows = held(("old/eth0", "10.0.0.2"), ("old/eth0", "fd00::2"))
    assert found(rows, uses("new/eth0", "10.0.0.2")) == [
        ("HELD_BY_ANOTHER", "10.0.0.2", "node-1:old/eth0", ("new/eth0",))
    ]


def test_a_holder_of_the_same_name_on_another_node_is_another() -> None:
    rows = held(("a/eth0", "10.0.0.2"), node="node-2")
    assert found(rows, uses("a/eth0", "10.0.0.2")) == [
        ("HELD_BY_ANOTHER", "10.0.0.2", "node-2:a/eth0", ("a/eth0",))
    ]


def test_two_endpoints_with_one_address_are_told_together() -> None:
    rows = held(("a/eth0", "10.0.0.2"))
    assert found(rows, uses("a/eth0", "10.0.0.2"), uses("b/eth0", "10.0.0.2")) == [
        ("USED_TWICE", "10.0.0.2", "node-1:a/eth0", ("a/eth0", "b/eth0"))
    ]
    assert [kind for kind, *_ in found({}, uses("a", "10.0.0.2"), uses("b", "10.0.0.2"))] == [
        "NOT_HELD",
        "USED_TWICE",
    ]
    assert found(rows, uses("a/eth0", "10.0.0.2", "10.0.0.2")) == []


def test_a_full_node_is_compared_in_well_under_a_second() -> None:
    count = 60_000
    addresses = [(10 << 24 | number).to_bytes(4, "big") for number in range(count)]
    rows = {
        address: HeldAddress(address, NODE, f"c{number}/eth0", 0) for number, address in enumerate(addresses)
    }
    endpoints = [UsedBy(f"c{number}/eth0", (addresses[number],)) for number in range(1, count)]
    started = time.process_time()
    findings = compare(NODE, rows, endpoints, now_ns=NOW, min_age_ns=0)
    assert time.process_time() - started < 2.0
    assert findings == [Finding(Kind.LEAKED, addresses[0], rows[addresses[0]])]


def test_a_request_says_which_of_its_owners_is_there_twice() -> None:
    request = ipam_pb2.CheckAddressesRequest(node=NODE)
    for owner in ("a/eth0", "b/eth0", "a/eth0"):
        request.endpoints.add(owner=owner)
    with pytest.raises(InvalidArgument, match=r"endpoints\[2\].owner: 'a/eth0'") as caught:
        endpoints_of(request)
    assert caught.value.reason == "OWNER_REPEATED"


def test_a_request_names_the_address_that_is_none() -> None:
    request = ipam_pb2.CheckAddressesRequest(node=NODE)
    request.endpoints.add(owner="a/eth0", addresses=["10.0.0.2", "fe80::1%eth0"])
    with pytest.raises(InvalidArgument, match="fe80::1%eth0") as caught:
        endpoints_of(request)
    assert caught.value.violations[0].field == "endpoints[0].addresses[1]"


def test_addresses_of_a_request_may_be_written_in_any_way() -> None:
    request = ipam_pb2.CheckAddressesRequest(node=NODE)
    request.endpoints.add(owner="a/eth0", addresses=["10.0.0.2", "FD00:0::2"])
    assert endpoints_of(request) == [uses("a/eth0", "10.0.0.2", "fd00::2")]


def test_the_kinds_are_those_of_the_api() -> None:
    holder = HeldAddress(packed("fd00::2"), "node-2", "a/eth0", 5 * SECOND + 7)
    for kind in Kind:
        message = finding_message(Finding(kind, holder.address, holder, ("b/eth0",)))
        assert ipam_pb2.AddressFinding.Kind.Name(message.kind) == f"KIND_{kind.name}"
    assert (message.address, message.holder, message.holder_node) == ("fd00::2", "a/eth0", "node-2")
    assert (message.create_time.seconds, message.create_time.nanos) == (5, 7)
    assert list(message.users) == ["b/eth0"]
    nobody = finding_message(Finding(Kind.NOT_HELD, packed("10.0.0.2"), None))
    assert nobody.holder == "" and not nobody.HasField("create_time")
