"""From filters to links and back, and from program to program, under traffic: each packet is judged once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from services.loader.bpf.attach import Hook, Kind, Mode, Ownership, attach, attachments, detach, link_state
from tests.kernel.attach.conftest import Wire
from tests.kernel.attach.programs import DROPPED, PASSED, Programs

pytestmark = pytest.mark.kernel

KINDS = {Mode.CLSACT: Kind.CLSACT, Mode.TCX: Kind.TCX, Mode.AUTO: Kind.TCX}


def kinds(wire: Wire, programs: Programs) -> list[Kind]:
    """What of ours is on the device, at either hook."""
    ours = Ownership.of_programs([programs["from_test"]])
    return [each.kind for each in attachments([wire.ifindex], ours)[wire.ifindex]]


def test_each_packet_is_judged_once_while_filters_become_links_and_links_filters(
    wire: Wire, load: Callable[..., Programs]
) -> None:
    programs = load()
    attach([wire.place(programs)], mode=Mode.CLSACT)
    with wire.stream() as stream:
        for _ in range(10):
            for mode in (Mode.TCX, Mode.CLSACT, Mode.AUTO, Mode.CLSACT):
                # A new version each time: other programs, the same counters.
                version = load(programs)
                assert attach([wire.place(version)], mode=mode) == [KINDS[mode]]
                assert kinds(wire, programs) == [KINDS[mode]]
                stream.more(10)
                version.close_programs()
    assert (stream.lost, stream.leaked) == ([], [])
    assert (programs.count(PASSED), programs.count(DROPPED)) == (stream.sent, stream.sent)
    assert stream.sent > 400


@pytest.mark.parametrize("mode", [Mode.CLSACT, Mode.TCX])
def test_a_program_is_replaced_in_place(wire: Wire, load: Callable[..., Programs], mode: Mode) -> None:
    programs = load()
    attach([wire.place(programs)], mode=mode)
    with wire.stream() as stream:
        for _ in range(20):
            version = load(programs)
            assert attach([wire.place(version)], mode=mode) == [KINDS[mode]]
            stream.more(5)
            version.close_programs()
    assert (stream.lost, stream.leaked) == ([], [])
    assert (programs.count(PASSED), programs.count(DROPPED)) == (stream.sent, stream.sent)
    assert kinds(wire, programs) == [KINDS[mode]]


def test_what_an_interrupted_change_left_beside_is_removed_by_the_next(
    wire: Wire, load: Callable[..., Programs]
) -> None:
    programs = load()
    place = wire.place(programs)
    # Killed when the link was there and the filter not removed yet, or the other way round.
    attach([place], mode=Mode.TCX)
    attach([replace(place, pin="")])
    assert sorted(kinds(wire, programs)) == [Kind.CLSACT, Kind.TCX]
    attach([place], mode=Mode.AUTO)
    assert kinds(wire, programs) == [Kind.TCX]
    attach([replace(place, pin="")])
    attach([place], mode=Mode.CLSACT)
    assert kinds(wire, programs) == [Kind.CLSACT]
    assert link_state(place.pin) is None


@pytest.mark.parametrize("mode", [Mode.CLSACT, Mode.TCX])
def test_detaching_leaves_nothing_of_ours(wire: Wire, load: Callable[..., Programs], mode: Mode) -> None:
    programs = load()
    places = [wire.place(programs, hook) for hook in Hook]
    attach(places, mode=mode)
    assert kinds(wire, programs) == [KINDS[mode]] * 2
    detach(places)
    assert kinds(wire, programs) == []
    detach(places)
