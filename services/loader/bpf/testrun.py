"""Runs a loaded program on a packet of one's own: BPF_PROG_TEST_RUN."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from services.loader.bpf.native import check, ffi, lib, sized

TC_ACT_OK = 0
TC_ACT_SHOT = 2
TC_ACT_REDIRECT = 7

_SKB_BYTES = 192  # struct __sk_buff
_SKB_MARK = 8
_SKB_INGRESS_IFINDEX = 36
_SKB_IFINDEX = 40
_ROOM = 256  # what a program may add in front


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a program did: its action, the packet and mark as it left them, nanoseconds a run on average."""

    __test__ = False  # not a test case, whatever its name looks like

    action: int
    packet: bytes
    mark: int
    nanoseconds: int


def run_program(
    fd: int, packet: bytes, *, ifindex: int, ingress_ifindex: int = 0, mark: int = 0, repeat: int = 1
) -> TestRun:
    """Runs the program ``repeat`` times on ``packet``, an Ethernet frame of at least 14 bytes.

    ``ifindex`` is a device of the caller's network namespace, where the packet is; ``ingress_ifindex`` is
    where it entered the namespace's stack, 0 for a packet made here. Redirects are decided, not carried out.
    With ``repeat`` a run's packet is what the run before left. Raises BpfError: ENODEV without such a
    device, EINVAL for a frame too short.
    """
    context = bytearray(_SKB_BYTES)
    struct.pack_into("=I", context, _SKB_MARK, mark)
    struct.pack_into("=I", context, _SKB_INGRESS_IFINDEX, ingress_ifindex)
    struct.pack_into("=I", context, _SKB_IFINDEX, ifindex)
    context_in = ffi.from_buffer(context)
    context_out = ffi.new("char[]", _SKB_BYTES)
    data_in = ffi.from_buffer(packet)
    data_out = ffi.new("char[]", len(packet) + _ROOM)
    options = sized(
        "struct bpf_test_run_opts",
        data_in=data_in, data_size_in=len(packet), data_out=data_out, data_size_out=len(packet) + _ROOM,
        ctx_in=context_in, ctx_size_in=_SKB_BYTES, ctx_out=context_out, ctx_size_out=_SKB_BYTES,
        repeat=repeat,
    )  # fmt: skip
    check(lib.bpf_prog_test_run_opts(fd, options), "run a program on a packet")
    (out_mark,) = struct.unpack_from("=I", ffi.buffer(context_out), _SKB_MARK)
    return TestRun(
        options.retval, bytes(ffi.buffer(data_out, options.data_size_out)), out_mark, options.duration
    )
