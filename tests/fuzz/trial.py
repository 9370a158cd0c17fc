"""BPF_PROG_TEST_RUN a hundred thousand times: one set of buffers, one call."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.loader.bpf.native import check, ffi, lib, sized
from tests.fuzz.model.parsing import ETHERNET
from tests.fuzz.model.steps import Input

_SKB_BYTES = 192  # struct __sk_buff
_MARK = 8
_INGRESS = struct.Struct("=II")  # ingress_ifindex, ifindex
_INGRESS_PLACE = 36
_CB = struct.Struct("=5I")
_CB_PLACE, _CB_QUEUE = 48, 12
_CB_KEY, _CB_TAG = 0x100, 0x200
_TSTAMP = 152
_GSO_SIZE = 176
_LARGEST = 4096
# Shorter ones the kernel takes for cut off: the entrance cuts them.
_TAKEN = {b"\x08\x00": ETHERNET + 20, b"\x86\xdd": ETHERNET + 40}
_SHORTEST = 60
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_CHECKSUM_COMPLETE = 4  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE, Linux 6.11


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program returned, and the packet, mark and queue mapping (a slot) as it left them.

    ``departure`` is when the packet may leave, in ns of CLOCK_MONOTONIC, 0: at once. ``is_sum_right`` is
    whether the device's sum over the packet is still right, if it had one.
    """

    action: int
    frame: bytes
    mark: int
    queue: int
    departure: int
    is_sum_right: bool


class Trials:
    """Runs programs on packets by way of ``entrance``, that of bpf/fuzz_enter.c, which calls the one at a
    place of ``places``.
    """

    def __init__(self, entrance: int, places: Mapping[str, int]) -> None:
        self._entrance = entrance
        self._places = dict(places)
        self._context = bytearray(_SKB_BYTES)
        self._after = bytearray(_SKB_BYTES)
        self._frame = bytearray(_LARGEST)
        self._out = bytearray(_LARGEST)
        self._kept: list[Any] = [
            ffi.from_buffer(buffer) for buffer in (self._context, self._after, self._frame, self._out)
        ]
        context, after, frame, out = self._kept
        self._options = sized(
            "struct bpf_test_run_opts",
            data_in=frame, data_out=out, ctx_in=context, ctx_size_in=_SKB_BYTES, ctx_out=after,
            repeat=1,
        )  # fmt: skip

    def run(self, given: Input, queue: int) -> Outcome:
        """Runs the packet's program once. Raises BpfError for a packet that the kernel does not take."""
        options, context, frame = self._options, self._context, given.frame
        _U32.pack_into(context, _MARK, given.mark)
        _INGRESS.pack_into(context, _INGRESS_PLACE, given.ingress, given.ifindex)
        _U32.pack_into(context, _GSO_SIZE, given.gso)
        size = len(frame)
        kept = 0
        if size < _SHORTEST and size < _TAKEN.get(frame[12:14], ETHERNET + 1):
            kept, size = size, _SHORTEST
            self._frame[kept:size] = bytes(size - kept)
        place = self._places[given.program]
        place |= _CB_KEY * (given.vni is not None) | _CB_TAG * given.vlan
        _CB.pack_into(context, _CB_PLACE, place, given.vni or 0, kept, queue, 0)
        self._frame[: len(frame)] = frame
        options.data_size_in = size
        options.data_size_out = _LARGEST
        options.ctx_size_out = _SKB_BYTES
        options.flags = _CHECKSUM_COMPLETE if given.is_summed else 0
        result = lib.bpf_prog_test_run_opts(self._entrance, options)
        is_sum_right = result != -errno.EBADMSG
        if result < 0 and is_sum_right:
            check(result, f"run {given.program} on {len(frame)} bytes")
        (mark,) = _U32.unpack_from(self._after, _MARK)
        (queue,) = _U32.unpack_from(self._after, _CB_PLACE + _CB_QUEUE)
        (departure,) = _U64.unpack_from(self._after, _TSTAMP)
        data = bytes(self._out[: options.data_size_out])
        return Outcome(options.retval, data, mark, queue, departure, is_sum_right)
