"""Links that no longer hold anything are found and made anew; kernels without tcx get filters."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from services.loader.bpf import native
from services.loader.bpf.attach import (
    Hook,
    Kind,
    Mode,
    Ownership,
    TcxMissing,
    attach,
    attachments,
    declarations,
    link_program,
    link_state,
)
from services.loader.bpf.attach.declarations import program_info
from services.loader.bpf.pins import PinDirectory
from services.loader.bpf.stray_pins import find_stray_pins, remove_stray_pin
from tests.kernel.attach.conftest import DEVICE, Wire
from tests.kernel.attach.programs import DROPPED, PASSED, Programs
from tests.kernel.bpf.namespaces import run

pytestmark = pytest.mark.kernel


def filters_traffic(wire: Wire, programs: Programs) -> bool:
    before = programs.count(PASSED), programs.count(DROPPED)
    with wire.stream() as stream:
        stream.more(5)
    after = programs.count(PASSED), programs.count(DROPPED)
    assert not stream.lost
    seen = after[0] - before[0], after[1] - before[1]
    assert seen in ((stream.sent, stream.sent), (0, 0))
    assert bool(stream.leaked) == (seen == (0, 0))
    return seen != (0, 0)


def test_a_link_that_somebody_detached_is_made_anew(wire: Wire, load: Callable[..., Programs]) -> None:
    programs = load()
    place = wire.place(programs)
    attach([place], mode=Mode.TCX)
    assert link_program(place.pin) == program_info(programs["from_test"]).id
    run("bpftool", "link", "detach", "pinned", place.pin)
    state = link_state(place.pin)
    assert state is not None and state.ifindex == 0 and link_program(place.pin) is None
    assert not filters_traffic(wire, programs)
    attach([place], mode=Mode.TCX)
    assert link_program(place.pin) is not None
    assert filters_traffic(wire, programs)


def test_a_device_that_came_back_by_its_name_gets_a_link_of_its_own(
    wire: Wire, load: Callable[..., Programs]
) -> None:
    programs = load()
    attach([wire.place(programs)], mode=Mode.TCX)
    run("ip", "link", "del", DEVICE)
    wire.make_device()
    assert link_program(wire.place(programs).pin) is None
    assert not filters_traffic(wire, programs)
    attach([wire.place(programs)], mode=Mode.TCX)
    state = link_state(wire.place(programs).pin)
    assert state is not None and state.ifindex == wire.ifindex
    assert filters_traffic(wire, programs)


def test_a_device_that_was_renamed_is_let_go(wire: Wire, load: Callable[..., Programs]) -> None:
    programs = load()
    attach([wire.place(programs)], mode=Mode.TCX)
    former = wire.ifindex
    run("ip", "link", "set", DEVICE, "down")
    run("ip", "link", "set", DEVICE, "name", "former")
    run("ip", "link", "add", DEVICE, "type", "veth", "peer", "name", "else")
    attach([wire.place(programs)], mode=Mode.TCX)
    ours = Ownership.of_programs([programs["from_test"]])
    state = link_state(wire.place(programs).pin)
    assert state is not None and state.ifindex == wire.ifindex != former
    assert [each.kind for each in attachments([wire.ifindex], ours)[wire.ifindex]] == [Kind.TCX]


def test_something_else_that_is_pinned_there_is_replaced(wire: Wire, load: Callable[..., Programs]) -> None:
    """A link of the other hook, of a version that called its programs otherwise."""
    programs = load()
    ingress, egress = (wire.place(programs, hook) for hook in Hook)
    attach([ingress], mode=Mode.TCX)
    os.rename(ingress.pin, egress.pin)
    attach([egress, ingress], mode=Mode.TCX)
    ours = Ownership.of_programs([programs["from_test"]])
    assert sorted(each.hook for each in attachments([wire.ifindex], ours)[wire.ifindex]) == [
        "egress",
        "ingress",
    ]


def test_a_device_may_have_a_dot_in_its_name(wire: Wire, load: Callable[..., Programs]) -> None:
    """bpffs allows none in names."""
    programs, pins = load(), PinDirectory(wire.pins)
    run("ip", "link", "add", "eth0.100", "type", "veth", "peer", "name", "far")
    pins.make(("eth0.100",))
    place = replace(
        wire.place(programs),
        ifindex=socket.if_nametoindex("eth0.100"),
        pin=pins.link("eth0.100", "from_test"),
    )
    assert attach([place], mode=Mode.TCX) == [Kind.TCX]
    assert pins.link_devices() == ["eth0.100"]
    assert find_stray_pins(pins, maps=(), programs=(), devices=("eth0.100",)) == []
    (stray,) = find_stray_pins(pins, maps=(), programs=(), devices=("eth0",))
    remove_stray_pin(pins, stray.path)
    assert link_program(place.pin) is None and pins.link_devices() == []


class LibraryBeforeTcx:
    """libbpf on a kernel before 6.6, which knows no such attach type."""

    def __getattr__(self, name: str) -> Any:
        return getattr(native.lib, name)

    def bpf_link_create(self, *_: object) -> int:
        return -errno.EINVAL


def test_without_tcx_there_are_filters_or_an_error_that_says_so(
    wire: Wire, load: Callable[..., Programs], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = load()
    place = wire.place(programs)
    monkeypatch.setattr(declarations, "lib", LibraryBeforeTcx())
    with pytest.raises(TcxMissing, match=r"Linux 6\.6.*FIMBRIA_ATTACH_MODE"):
        attach([place], mode=Mode.TCX)
    assert attach([place], mode=Mode.AUTO) == [Kind.CLSACT]
    assert not os.path.exists(place.pin)
    assert filters_traffic(wire, programs)


def test_it_is_told_what_holds_which_program_where(wire: Wire, load: Callable[..., Programs]) -> None:
    programs, other = load(), load()
    ingress, egress = (wire.place(programs, hook) for hook in Hook)
    attach([ingress], mode=Mode.TCX)
    attach([egress], mode=Mode.CLSACT)
    attach([replace(wire.place(other), pin="")])
    loopback = 1
    found = attachments([wire.ifindex, loopback, 9999], Ownership.of_programs([programs["from_test"]]))
    assert [(each.hook, each.kind, each.program) for each in found[wire.ifindex]] == [
        ("ingress", Kind.TCX, program_info(programs["from_test"]).id),
        ("egress", Kind.CLSACT, program_info(programs["to_test"]).id),
    ]
    assert found[loopback] == found[9999] == []
