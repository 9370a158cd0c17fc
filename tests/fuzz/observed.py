"""What else the programs tell: counters, reports, departure times."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.events import Event
from services.loader.bpf.layout import ENDPOINT_SLOTS
from services.loader.bpf.maps import Map
from services.loader.bpf.native import ffi, lib

_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_DIRECTIONS = 4


@dataclass(frozen=True, slots=True)
class Count:
    """A drop that was counted. ``direction`` is 0 for ingress, 1 for egress."""

    reason: int
    direction: int
    octets: int


class Counters:
    """The drop counters, of which a packet moves one at most."""

    def __init__(self, metrics: Map) -> None:
        self._map = metrics
        self._cpus = lib.libbpf_num_possible_cpus()
        self._metric = ffi.new("char[]", metrics.definition.value_size * self._cpus)
        self._view = memoryview(ffi.buffer(self._metric)).cast("Q")
        self._key = ffi.new("__u32 *")
        self._known = {reason: self._read(reason) for reason in range(1, 256)}

    def moved(self, likely: int = 0) -> list[Count]:
        """What was counted since the last call. ``likely`` is all that is looked at if it has moved."""
        if likely and (found := self._moved(likely)):
            return found
        return [count for reason in self._known for count in self._moved(reason)]

    def _moved(self, reason: int) -> list[Count]:
        before, after = self._known[reason], self._read(reason)
        if before == after:
            return []
        self._known[reason] = after
        return [
            Count(reason, place, after[place + _DIRECTIONS] - before[place + _DIRECTIONS])
            for place in range(_DIRECTIONS)
            for _ in range(after[place] - before[place])
        ]

    def _read(self, reason: int) -> tuple[int, ...]:
        """Packets by direction, then bytes by direction."""
        self._key[0] = reason
        lib.bpf_map_lookup_elem(self._map.fd, self._key, self._metric)
        view = self._view
        return tuple(sum(view[place :: 2 * _DIRECTIONS]) for place in range(2 * _DIRECTIONS))


class Reports:
    """Reads the datapath's events, which there are only while somebody wants them."""

    def __init__(self, datapath: KernelDatapath) -> None:
        self._datapath = datapath
        self._events: list[Event] = []
        self._reader = datapath.events(self._events.append)
        self.want(events=False)

    def want(self, *, events: bool, trace: bool = False) -> None:
        """Begins or ends to be somebody who reads."""
        self._datapath.want_events(events, trace=trace)

    def take(self) -> list[Event]:
        """Those since the last call."""
        while self._reader.consume():
            pass
        taken = list(self._events)
        self._events.clear()
        return taken

    def close(self) -> None:
        """Ends reading."""
        self._reader.close()


class Departures:
    """When endpoints with a rate may send their next packets out of the node. Times in ns."""

    def __init__(self, times: Map, slots: Map) -> None:
        self._times = times
        self._slots = slots

    def slot(self, ifindex: int) -> int:
        """The slot of an endpoint's row, by its device; 0 for none."""
        data = self._slots.get(_U32.pack(ifindex)) if ifindex else None
        return int(_U32.unpack(data)[0]) if data is not None else 0

    def next(self, ifindex: int) -> int:
        """When the endpoint's next packet may leave."""
        data = self._times.get(_U32.pack(self.slot(ifindex)))
        assert data is not None, "an array has every element"
        return int(_U64.unpack(data)[0])

    def set(self, ifindex: int, time: int) -> None:
        """Lets the endpoint's next packet leave at ``time``."""
        self._times.put(_U32.pack(self.slot(ifindex)), _U64.pack(time))

    def clear(self) -> None:
        """Nobody has to wait."""
        for slot in range(min(ENDPOINT_SLOTS, 64)):
            self._times.put(_U32.pack(slot), bytes(8))
