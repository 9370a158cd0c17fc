"""Other people's programs on the same device: never removed, replaced or moved, whatever we do."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest

from services.loader.bpf.attach import (
    Anchor,
    Hook,
    Mode,
    Ownership,
    Place,
    attach,
    attach_many,
    detach,
    pin_replacing,
)
from services.loader.bpf.attach.declarations import TCX_INGRESS, create_link, program_info, programs_at
from services.loader.bpf.errors import BpfError
from services.loader.bpf.native import check
from services.loader.bpf.pins import PinDirectory
from tests.kernel.attach.conftest import DEVICE, Wire
from tests.kernel.attach.programs import PASSED, SEEN_BY_OTHER, Programs
from tests.kernel.bpf.namespaces import run

pytestmark = pytest.mark.kernel


def program_id(programs: Programs, name: str = "from_test") -> int:
    return int(program_info(programs[name]).id)


def filters() -> list[tuple[int, int]]:
    """(priority, program) of the device's filters at ingress, as tc shows them."""
    shown = run("tc", "filter", "show", "dev", DEVICE, "ingress")
    return [
        (int(match[1]), int(match[2]))
        for match in re.finditer(r"pref (\d+) bpf .* handle .* id (\d+)", shown)
    ]


def other_filter(other: Programs, wire: Wire, priority: int) -> None:
    pin = f"{wire.pins}/other"
    os.makedirs(wire.pins, exist_ok=True)
    pin_replacing(other["from_other"], pin)
    run("tc", "qdisc", "replace", "dev", DEVICE, "clsact")
    run(
        "tc", "filter", "add", "dev", DEVICE, "ingress", "prio", str(priority), "bpf", "direct-action",
        "object-pinned", pin,
    )  # fmt: skip


@pytest.mark.usefixtures("tcx")
@pytest.mark.parametrize("anchor", list(Anchor))
def test_links_of_others_keep_their_place_and_ours_goes_by_its_anchor(
    wire: Wire, load: Callable[..., Programs], anchor: Anchor
) -> None:
    ours, before, after = load(), load(), load()
    theirs = [check(create_link(before["from_other"], wire.ifindex, TCX_INGRESS), "link")]
    attach([wire.place(ours)], mode=Mode.AUTO, anchor=anchor)
    theirs.append(check(create_link(after["from_other"], wire.ifindex, TCX_INGRESS), "link"))
    others = [program_id(before, "from_other"), program_id(after, "from_other")]

    def order(programs: Programs) -> list[int]:
        mine = program_id(programs)
        return [mine, *others] if anchor is Anchor.FIRST else [others[0], mine, others[1]]

    assert programs_at(wire.ifindex, TCX_INGRESS) == order(ours)
    version = load(ours)
    # In place, whatever the anchor is by now.
    attach([wire.place(version)], mode=Mode.TCX, anchor=Anchor.LAST)
    assert programs_at(wire.ifindex, TCX_INGRESS) == order(version)
    with wire.stream() as stream:
        stream.more(20)
    assert not stream.lost and not stream.leaked
    assert before.count(SEEN_BY_OTHER) == (0 if anchor is Anchor.FIRST else 2 * stream.sent)
    assert after.count(SEEN_BY_OTHER) == 0
    attach([wire.place(version)], mode=Mode.CLSACT)
    assert programs_at(wire.ifindex, TCX_INGRESS) == others
    detach([wire.place(version)])
    assert programs_at(wire.ifindex, TCX_INGRESS) == others
    for link in theirs:
        os.close(link)


def test_a_filter_of_somebody_else_keeps_its_priority_and_ours_finds_another(
    wire: Wire, load: Callable[..., Programs]
) -> None:
    ours, other = load(), load()
    other_filter(other, wire, 1)
    other_filter(other, wire, 3)
    theirs = program_id(other, "from_other")
    attach([wire.place(ours)])
    assert filters() == [(1, theirs), (2, program_id(ours)), (3, theirs)]
    with wire.stream() as stream:
        stream.more(20)
    assert not stream.lost and not stream.leaked
    # The one before ours saw all, the one behind nothing.
    assert other.count(SEEN_BY_OTHER) == 2 * stream.sent
    run("tc", "filter", "del", "dev", DEVICE, "ingress", "prio", "1")
    version = load(ours)
    attach([wire.place(version)])
    assert filters() == [(2, program_id(version)), (3, theirs)], "it did not stay where it was"
    attach([wire.place(version)], mode=Mode.TCX)
    assert filters() == [(3, theirs)]
    attach([wire.place(version)], mode=Mode.CLSACT)
    assert filters() == [(1, program_id(version)), (3, theirs)]
    detach([wire.place(version)])
    assert filters() == [(3, theirs)]


def test_filters_that_are_no_programs_are_left_alone(wire: Wire, load: Callable[..., Programs]) -> None:
    ours = load()
    run("tc", "qdisc", "add", "dev", DEVICE, "clsact")
    run(
        "tc", "filter", "add", "dev", DEVICE, "ingress", "prio", "1", "protocol", "ip", "u32", "match",
        "ip", "dst", "203.0.113.1/32", "flowid", "1:1",
    )  # fmt: skip
    before = run("tc", "filter", "show", "dev", DEVICE, "ingress", "prio", "1")
    attach([wire.place(ours)])
    attach([wire.place(ours)])
    assert filters() == [(2, program_id(ours))]
    detach([wire.place(ours)])
    assert run("tc", "filter", "show", "dev", DEVICE, "ingress", "prio", "1") == before
    assert filters() == []


def test_another_nodes_program_of_the_same_name_is_not_ours(
    wire: Wire, load: Callable[..., Programs]
) -> None:
    ours, other_node = load(), load()
    attach([wire.place(other_node)])
    attach([wire.place(ours)])
    assert filters() == [(1, program_id(other_node)), (2, program_id(ours))]


def test_on_a_device_of_our_own_a_program_of_a_former_life_is_replaced(
    wire: Wire, load: Callable[..., Programs]
) -> None:
    """Its maps are gone with the pins: left there, it would go on judging by them, before ours."""
    former, ours, other = load(), load(), load()
    attach([wire.place(former)])
    other_filter(other, wire, 2)
    attach([wire.place(ours, exclusive=True)])
    assert filters() == [(1, program_id(ours)), (2, program_id(other, "from_other"))]


def test_what_is_pinned_for_the_node_is_the_nodes(wire: Wire, load: Callable[..., Programs]) -> None:
    """A version that shares no map with the next one is known by its pin."""
    former, ours = load(), load()
    pins = PinDirectory(wire.pins)
    pins.make((DEVICE,))
    pin_replacing(former["from_test"], os.path.join(pins.programs, "from_test"))
    attach([wire.place(former)])
    known = Ownership.of_pins(pins)
    assert known.owns(program_id(former)) and not known.owns(program_id(ours))
    attach([wire.place(ours)], ours=known)
    assert filters() == [(1, program_id(ours))]


@pytest.mark.usefixtures("tcx")
def test_an_ingress_qdisc_of_somebody_else_stays_and_is_named(
    wire: Wire, load: Callable[..., Programs]
) -> None:
    """It takes filters for egress as well, and would run them at ingress."""
    ours = load()
    run("tc", "qdisc", "add", "dev", DEVICE, "ingress")
    with pytest.raises(BpfError, match=r"ingress qdisc.*FIMBRIA_ATTACH_MODE") as caught:
        attach([wire.place(ours, hook) for hook in Hook])
    assert caught.value.errno == errno.EEXIST
    assert "qdisc ingress" in run("tc", "qdisc", "show", "dev", DEVICE)
    attach([wire.place(ours, hook) for hook in Hook], mode=Mode.AUTO)
    with wire.stream() as stream:
        stream.more(5)
    assert not stream.lost and not stream.leaked
    assert ours.count(PASSED) == stream.sent


def test_a_device_that_is_gone_fails_alone(wire: Wire, load: Callable[..., Programs]) -> None:
    ours = load()
    names = [f"many{number}" for number in range(40)]
    for name in names:
        run("ip", "link", "add", name, "type", "veth", "peer", "name", f"p{name}")
    here = wire.place(ours)
    places = [
        replace(here, ifindex=socket.if_nametoindex(name), hook=hook, pin="")
        for name in names
        for hook in Hook
    ]
    run("ip", "link", "del", "many7")
    results = attach_many(places)
    assert [index for index, each in enumerate(results) if each.device_gone] == [14, 15]
    assert all(each.error is None for each in results if not each.device_gone)
    for mode in (Mode.TCX, Mode.AUTO):
        gone = Place(places[14].ifindex, Hook.INGRESS, here.program, f"{here.pin}_gone")
        assert [each.device_gone for each in attach_many([gone, here], mode=mode)] == [True, False]
