"""BPF_PROG_TEST_RUN a hundred thousand times: one set of buffers, one call."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.loader.bpf.native import check, ffi, lib, sized
from tests.fuzz.model.parsing import ETHERNET
from tests.fuzz.model.programs import Input

_SKB_BYTES = 192  # struct __sk_buff
_MARK = 8
_INGRESS = struct.Struct("=II")  # ingress_ifindex, ifindex
_INGRESS_PLACE = 36
_CB = struct.Struct("=5I")
_CB_PLACE = 48
_GSO_SIZE = 176
_LARGEST = 4096
# Shorter ones the kernel takes for cut off: the entrance cuts them.
_TAKEN = {b"\x08\x00": ETHERNET + 20, b"\x86\xdd": ETHERNET + 40}
_SHORTEST = 60
_U32 = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program returned, and the packet and mark as it left them."""

    action: int
    frame: bytes
    mark: int


class Trials:
    """Runs programs on packets. ``programs`` are descriptors by name.

    ``entrance`` is that of bpf/fuzz_enter.c, which goes on to the program at a place of ``places``.
    """

    def __init__(self, programs: Mapping[str, int], entrance: int, places: Mapping[str, int]) -> None:
        self._programs = dict(programs)
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

    def run(self, given: Input) -> Outcome:
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
        if given.vni is None and not given.vlan and not kept:
            program = self._programs[given.program]
            _CB.pack_into(context, _CB_PLACE, 0, 0, 0, 0, 0)
        else:
            program = self._entrance
            place, has_key = self._places[given.program], given.vni is not None
            _CB.pack_into(context, _CB_PLACE, place, has_key, given.vni or 0, given.vlan, kept)
        self._frame[: len(frame)] = frame
        options.data_size_in = size
        options.data_size_out = _LARGEST
        options.ctx_size_out = _SKB_BYTES
        result = lib.bpf_prog_test_run_opts(program, options)
        if result < 0:
            check(result, f"run {given.program} on {len(frame)} bytes")
        (mark,) = _U32.unpack_from(self._after, _MARK)
        return Outcome(options.retval, bytes(self._out[: options.data_size_out]), mark)
