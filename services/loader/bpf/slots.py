"""The endpoints' rows in the kernel: which slot each has, and how a row is changed under running programs.

An array's element is overwritten in place, and a program may be reading it. So a slot that devices or
addresses lead to is never written with other content: the new row goes to a free slot, the indexes are turned
to it one by one, each with one write, and the old slot is left alone until no program can remember it.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping

from services.loader.bpf.errors import BpfError
from services.loader.bpf.layout import (
    ENDPOINT_INDEX_MAX,
    ENDPOINT_SLOTS,
    HOST_SLOT,
    EndpointRow,
    ipv4_bytes,
    ipv6_bytes,
)
from services.loader.bpf.maps import Map
from services.loader.failpoints import passed

# A program runs for microseconds; what it remembers in a flow is void with the next generation.
_QUARANTINE_SECONDS = 0.1
_FIRST_SLOT = HOST_SLOT + 1
_ENOSPC = 28


class EndpointSlots:
    """Rows of the maps ``endpoint_*``. ``changed`` is called after every change.

    Methods raise BpfError; one that fails has changed nothing that programs can reach.
    """

    def __init__(
        self,
        maps: Mapping[str, Map],
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows = maps["endpoint_slot"]
        self._index = maps["endpoint_index"]
        self._devices = maps["endpoint_dev"]
        self._ipv4 = maps["endpoint_ip4"]
        self._ipv6 = maps["endpoint_ip6"]
        self._changed = changed
        self._clock = clock
        self._slots = {_int(key): _int(value) for key, value in self._devices.items()}
        used = set(self._slots.values())
        # Free ones were freed long ago, for all that is known.
        self._free = deque((slot, 0.0) for slot in range(_FIRST_SLOT, ENDPOINT_SLOTS) if slot not in used)

    def align(self) -> None:
        """Makes the indexes say what the devices say, as after a loader that died between its writes, and
        before anything is written into a slot that they may still lead to.
        """
        wrong = []
        for chunk in self._index.chunks():
            places = zip(memoryview(chunk.keys).cast("I"), memoryview(chunk.values).cast("I"), strict=True)
            wrong += [ifindex for ifindex, slot in places if slot != self._slots.get(ifindex, 0)]
        for ifindex in wrong:
            self._index.put(_u32(ifindex), _u32(self._slots.get(ifindex, 0)))
        owners = {key: slot for slot in self._slots.values() for _, key in self._keys(self._row(slot))}
        for table in (self._ipv4, self._ipv6):
            for key, value in list(table.items()):
                slot = owners.get(key)
                if _int(value) in (slot, HOST_SLOT):
                    continue
                if slot is None:
                    table.delete(key)
                elif _int(value) not in self._slots.values():
                    table.put(key, _u32(slot))

    def rows(self) -> list[EndpointRow]:
        """Every endpoint that has a device, by ifindex."""
        return [self._row(slot) for _, slot in sorted(self._slots.items())]

    def get(self, ifindex: int) -> EndpointRow | None:
        """The endpoint of a device."""
        slot = self._slots.get(ifindex)
        return self._row(slot) if slot is not None else None

    def put_device(self, row: EndpointRow) -> int:
        """Writes the row and turns its device to it; returns the slot. Its addresses follow with
        :meth:`put_addresses`, with which others begin to deliver.
        """
        old = self._slots.get(row.ifindex)
        if old is not None and self._row(old) == row and self._leads_to(row.ifindex, old):
            return old
        slot = self._take()
        try:
            self._rows.put(_u32(slot), row.pack())
            passed("slot.row")
            self._devices.put(_u32(row.ifindex), _u32(slot))
        except (BpfError, ValueError, OSError):
            self._free.appendleft((slot, 0.0))
            raise
        self._slots[row.ifindex] = slot
        if row.ifindex < ENDPOINT_INDEX_MAX:
            self._index.put(_u32(row.ifindex), _u32(slot))
        passed("slot.device")
        if old is not None:
            self._replace(old, slot, row)
        self._changed()
        return slot

    def put_addresses(self, row: EndpointRow) -> None:
        """Turns the addresses of a row that is in its device's slot to it."""
        slot = _u32(self._slots[row.ifindex])
        turned = False
        for table, key in self._keys(row):
            if table.get(key) != slot:
                table.put(key, slot)
                turned = True
                passed("slot.address")
        if turned:
            self._changed()

    def remove(self, ifindex: int) -> None:
        """Removes an endpoint: its device passes nothing from then on. An address that another device has by
        now keeps its row. What is not there is passed over.
        """
        slot = self._slots.get(ifindex)
        if slot is None:
            return
        for table, key in self._keys(self._row(slot)):
            if table.get(key) == _u32(slot):
                table.delete(key)
        if ifindex < ENDPOINT_INDEX_MAX:
            self._index.put(_u32(ifindex), _u32(0))
        self._devices.delete(_u32(ifindex))
        del self._slots[ifindex]
        self._changed()
        self._free.append((slot, self._clock()))

    def remove_address(self, address: str, ifindex: int) -> None:
        """Removes an address, if it is that device's."""
        table = self._ipv6 if ":" in address else self._ipv4
        key = ipv6_bytes(address) if ":" in address else ipv4_bytes(address)
        data = table.get(key)
        if data is not None and self._row(_int(data)).ifindex == ifindex:
            table.delete(key)
            self._changed()

    def astray(self) -> list[int]:
        """Devices of endpoints that the maps do not lead to as they should, or whose addresses do not."""
        found = []
        for ifindex, slot in list(self._slots.items()):
            addresses = self._keys(self._row(slot))
            if not self._leads_to(ifindex, slot) or any(
                table.get(key) != _u32(slot) for table, key in addresses
            ):
                found.append(ifindex)
        return found

    def put_host(self, row: EndpointRow) -> None:
        """Writes the node's own row. In place: only its subject ever changes, which is one word."""
        self._rows.put(_u32(HOST_SLOT), row.pack())
        self._changed()

    def host(self) -> EndpointRow:
        """The node's own row; its subject is 0 while no policy selects the node."""
        return self._row(HOST_SLOT)

    def _replace(self, old: int, slot: int, row: EndpointRow) -> None:
        wanted = {key for _, key in self._keys(row)}
        for table, key in self._keys(self._row(old)):
            if table.get(key) != _u32(old):
                continue
            if key in wanted:
                table.put(key, _u32(slot))
            else:
                table.delete(key)
        self._free.append((old, self._clock()))

    def _leads_to(self, ifindex: int, slot: int) -> bool:
        tables = [self._devices, self._index] if ifindex < ENDPOINT_INDEX_MAX else [self._devices]
        return all(table.get(_u32(ifindex)) == _u32(slot) for table in tables)

    def _keys(self, row: EndpointRow) -> list[tuple[Map, bytes]]:
        keys = []
        if row.ipv4:
            keys.append((self._ipv4, ipv4_bytes(row.ipv4)))
        if row.ipv6:
            keys.append((self._ipv6, ipv6_bytes(row.ipv6)))
        return keys

    def _row(self, slot: int) -> EndpointRow:
        data = self._rows.get(_u32(slot))
        assert data is not None, "an array has every element"
        return EndpointRow.unpack(data)

    def _take(self) -> int:
        if not self._free:
            raise BpfError(_ENOSPC, "add an endpoint", f"all {ENDPOINT_SLOTS - _FIRST_SLOT} slots are in use")
        wait = self._free[0][1] + _QUARANTINE_SECONDS - self._clock()
        if wait > 0:
            # Only with nearly all slots in use: the one that was freed first was freed just now.
            time.sleep(wait)
        return self._free.popleft()[0]


def _u32(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def _int(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)
