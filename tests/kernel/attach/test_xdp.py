"""XDP: in the driver where it can, else in the stack; replaced in place; somebody else's stays."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest

from services.loader.bpf.attach import Kind, Ownership, attach_xdp, attachments, link_state, xdp_programs
from services.loader.bpf.attach.declarations import XDP, create_link, program_info
from services.loader.bpf.errors import BpfError
from services.loader.bpf.native import check
from tests.kernel.attach.conftest import DEVICE, Wire
from tests.kernel.attach.programs import DROPPED, PASSED, Programs
from tests.kernel.bpf.namespaces import run

pytestmark = pytest.mark.kernel


def pin(wire: Wire) -> str:
    return f"{wire.pins}/links/{DEVICE}/xdp_test"


def test_it_runs_in_the_driver_and_is_replaced_under_traffic(
    wire: Wire, load: Callable[..., Programs]
) -> None:
    programs = load()
    assert attach_xdp(pin(wire), wire.ifindex, programs["xdp_test"]) is Kind.XDP_NATIVE
    inode = os.stat(pin(wire)).st_ino
    with wire.stream() as stream:
        for _ in range(20):
            version = load(programs)
            assert attach_xdp(pin(wire), wire.ifindex, version["xdp_test"]) is Kind.XDP_NATIVE
            stream.more(5)
            version.close_programs()
    assert os.stat(pin(wire)).st_ino == inode
    assert (stream.lost, stream.leaked) == ([], [])
    assert (programs.count(PASSED), programs.count(DROPPED)) == (stream.sent, stream.sent)
    ours = Ownership.of_programs([programs["xdp_test"]])
    assert [(each.hook, each.kind) for each in attachments([wire.ifindex], ours)[wire.ifindex]] == [
        ("xdp", Kind.XDP_NATIVE)
    ]


def test_a_device_whose_driver_has_none_runs_it_in_the_stack(
    wire: Wire, load: Callable[..., Programs]
) -> None:
    programs = load()
    run("ip", "link", "add", "bridge0", "type", "bridge")
    run("ip", "link", "set", DEVICE, "master", "bridge0")
    run("ip", "address", "del", "192.0.2.1/24", "dev", DEVICE)
    run("ip", "address", "add", "192.0.2.1/24", "dev", "bridge0")
    run("ip", "link", "set", "bridge0", "up")
    bridge = socket.if_nametoindex("bridge0")
    assert attach_xdp(pin(wire), bridge, programs["xdp_test"]) is Kind.XDP_GENERIC
    with wire.stream() as stream:
        stream.more(5)
        version = load(programs)
        assert attach_xdp(pin(wire), bridge, version["xdp_test"]) is Kind.XDP_GENERIC
        stream.more(5)
    assert (stream.lost, stream.leaked) == ([], [])
    assert (programs.count(PASSED), programs.count(DROPPED)) == (stream.sent, stream.sent)


def test_a_program_of_somebody_else_is_left_alone(wire: Wire, load: Callable[..., Programs]) -> None:
    programs, other = load(), load()
    theirs = check(create_link(other["xdp_test"], wire.ifindex, XDP), "link")
    with pytest.raises(BpfError, match="another program is there") as caught:
        attach_xdp(pin(wire), wire.ifindex, programs["xdp_test"])
    assert caught.value.errno == errno.EBUSY
    (found,) = xdp_programs(wire.ifindex)
    assert found.program == program_info(other["xdp_test"]).id
    assert not os.path.exists(pin(wire))
    os.close(theirs)


def test_a_device_that_came_back_gets_a_link_of_its_own(wire: Wire, load: Callable[..., Programs]) -> None:
    programs = load()
    attach_xdp(pin(wire), wire.ifindex, programs["xdp_test"])
    run("ip", "link", "del", DEVICE)
    wire.make_device()
    attach_xdp(pin(wire), wire.ifindex, programs["xdp_test"])
    state = link_state(pin(wire))
    assert state is not None and state.ifindex == wire.ifindex


def test_a_device_that_is_not_there_is_named(wire: Wire, load: Callable[..., Programs]) -> None:
    with pytest.raises(BpfError, match="xdp of device 9999"):
        attach_xdp(pin(wire), 9999, load()["xdp_test"])
