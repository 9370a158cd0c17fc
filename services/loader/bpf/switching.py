"""Which program runs on which device of the node, and all of them moved to others at once.

Endpoint devices are those in the map ``endpoint_dev``: the kernel itself knows them, loader or not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.loader.bpf.attach import (
    Anchor,
    Attachment,
    Hook,
    Kind,
    Mode,
    Ownership,
    Place,
    attach,
    attach_many,
    attachments,
    has_tcx,
    link_state,
    remove_link,
)
from services.loader.bpf.errors import BpfError
from services.loader.bpf.maps import Map
from services.loader.bpf.native import check, lib
from services.loader.bpf.netkit import attach_endpoint, attach_peer, is_netkit
from services.loader.bpf.objects import Program, describe_program
from services.loader.bpf.pins import PinDirectory, names_in

FROM_CONTAINER, TO_CONTAINER = "from_container", "to_container"
_GONE = (6, 19)  # ENXIO, ENODEV


@dataclass(frozen=True, slots=True)
class AttachOptions:
    """What holds programs on devices: ``mode`` on the node's own, ``endpoint_mode`` on endpoints'."""

    mode: Mode = Mode.AUTO
    endpoint_mode: Mode = Mode.CLSACT
    anchor: Anchor = Anchor.LAST


@dataclass(frozen=True, slots=True)
class DevicePlace:
    """A program's place on one of the node's own devices."""

    device: str
    ifindex: int
    hook: Hook
    program: str


@dataclass(frozen=True, slots=True)
class Switchboard:
    """The node's devices. Methods raise BpfError, or OSError for a pin."""

    pins: PinDirectory
    places: Sequence[DevicePlace]
    options: AttachOptions = AttachOptions()

    def switch(self, programs: Mapping[str, int], endpoints: Iterable[int]) -> int:
        """Moves every device to these programs (descriptors by name), each in place; returns how many of the
        endpoints have them now. A device that is gone is passed over. When others refuse, all have been
        tried, and the first refusal is raised.
        """
        ours = Ownership.of_pins(self.pins)
        node = [
            Place(
                each.ifindex,
                each.hook,
                programs[each.program],
                pin=self.pins.link(each.device, each.program),
                exclusive=each.device.startswith("fimbria_"),
            )
            for each in self.places
            if each.program in programs
        ]
        problems = self._attach(node, self.options.mode, ours)
        moved = 0
        if FROM_CONTAINER in programs and TO_CONTAINER in programs:
            devices = list(endpoints)
            netkits = [ifindex for ifindex in devices if is_netkit(ifindex)]
            others = [ifindex for ifindex in devices if ifindex not in netkits]
            hooks = ((Hook.INGRESS, FROM_CONTAINER), (Hook.EGRESS, TO_CONTAINER))
            containers = [
                Place(ifindex, hook, programs[name], pin=self._endpoint_pin(ifindex, name), exclusive=True)
                for ifindex in others
                for hook, name in hooks
            ]
            containers += [
                Place(ifindex, Hook.EGRESS, programs[TO_CONTAINER], exclusive=True) for ifindex in netkits
            ]
            refused = self._attach(containers, self.options.endpoint_mode, ours)
            for ifindex in netkits:
                try:
                    attach_peer(ifindex, programs[FROM_CONTAINER])
                except BpfError as problem:
                    if problem.errno not in _GONE:
                        refused.append(problem)
            moved = len(netkits) + len(others) - len(refused)
            problems += refused
        if problems:
            raise problems[0]
        return moved

    def attach_endpoint(self, ifindex: int, programs: Mapping[str, int], *, netkit: bool) -> None:
        """Attaches an endpoint's programs (descriptors by name) to its device, in place. Raises BpfError;
        ENODEV: no device.
        """
        mode = self.options.endpoint_mode
        if netkit or mode is Mode.CLSACT:
            attach_endpoint(ifindex, programs[FROM_CONTAINER], programs[TO_CONTAINER], netkit=netkit)
            return
        hooks = ((Hook.INGRESS, FROM_CONTAINER), (Hook.EGRESS, TO_CONTAINER))
        places = [
            Place(ifindex, hook, programs[name], pin=self._endpoint_pin(ifindex, name), exclusive=True)
            for hook, name in hooks
        ]
        attach(places, mode=mode, anchor=self.options.anchor)

    def forget_endpoint(self, ifindex: int) -> None:
        """Removes the pins of links that an endpoint's device has, or that devices had which are gone."""
        if self.options.endpoint_mode is Mode.CLSACT:
            return
        own = {each.device for each in self.places}
        for device in self.pins.link_devices():
            if device in own:
                continue
            directory = os.path.dirname(self.pins.link(device, ""))
            for name in names_in(directory):
                state = link_state(self.pins.link(device, name))
                if state is not None and state.ifindex in (0, ifindex):
                    remove_link(self.pins.link(device, name))
            # One that has links of another device stays.
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    def running(self, endpoints: Iterable[int]) -> dict[tuple[int, str], int]:
        """The kernel's ids of our programs, by interface index and hook."""
        devices = [*(each.ifindex for each in self.places), *endpoints]
        found = attachments(devices, Ownership.of_pins(self.pins))
        return {
            (ifindex, each.hook): each.program for ifindex, here in found.items() for each in reversed(here)
        }

    def in_place(self, programs: Mapping[str, int], endpoints: Sequence[int]) -> bool:
        """Whether exactly these programs (the kernel's ids by name) run on all devices that there are, held
        there as the options say, and nothing else of ours does.
        """
        own = [each.ifindex for each in self.places]
        found = attachments([*own, *endpoints], Ownership.of_pins(self.pins))

        def held(ifindex: int, hook: str, mode: Mode) -> int | None:
            here = [each for each in found[ifindex] if each.hook == hook]
            return here[0].program if len(here) == 1 and _as_wanted(here[0], mode) else None

        for each in self.places:
            wanted = programs.get(each.program)
            if wanted is not None and held(each.ifindex, each.hook.label, self.options.mode) != wanted:
                return False
        for ifindex in endpoints:
            if not _exists(ifindex):
                continue
            peer = [each.program for each in found[ifindex] if each.hook == "netkit-peer"]
            mode = Mode.CLSACT if peer else self.options.endpoint_mode
            sent = peer[0] if peer else held(ifindex, Hook.INGRESS.label, mode)
            received = held(ifindex, Hook.EGRESS.label, mode)
            if (sent, received) != (programs.get(FROM_CONTAINER), programs.get(TO_CONTAINER)):
                return False
        return True

    def _attach(self, places: Sequence[Place], mode: Mode, ours: Ownership) -> list[BpfError]:
        results = attach_many(places, mode=mode, anchor=self.options.anchor, ours=ours)
        return [each.error for each in results if each.error is not None and not each.device_gone]

    def _endpoint_pin(self, ifindex: int, program: str) -> str:
        """Where an endpoint's link is pinned, or was before filters were wanted."""
        try:
            return self.pins.link(socket.if_indextoname(ifindex), program)
        except OSError:
            return ""


def _as_wanted(found: Attachment, mode: Mode) -> bool:
    if mode is Mode.TCX or (mode is Mode.AUTO and has_tcx(found.ifindex)):
        return found.kind is Kind.TCX
    return found.kind is Kind.CLSACT


def endpoint_devices(table: Map | None) -> list[int]:
    """Interface indexes of the endpoints in ``endpoint_dev``."""
    if table is None:
        return []
    return sorted(int.from_bytes(key, sys.byteorder) for key, _ in table.items())


def open_programs(*directories: str) -> dict[str, Program]:
    """The pinned programs by name, of an earlier directory rather than a later one; descriptors are the
    caller's to close. Raises BpfError.
    """
    found: dict[str, Program] = {}
    for directory in directories:
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            continue
        for name in names:
            if name not in found and not name.endswith("_new"):
                fd = check(lib.bpf_obj_get(os.path.join(directory, name).encode()), f"open program {name}")
                found[name] = describe_program(name, fd)
    return found


def close_programs(programs: Mapping[str, Program]) -> None:
    """Closes their descriptors."""
    for program in programs.values():
        os.close(program.fd)


def descriptors(programs: Mapping[str, Program]) -> dict[str, int]:
    """Their descriptors by name."""
    return {name: program.fd for name, program in programs.items()}


def _exists(ifindex: int) -> bool:
    try:
        socket.if_indextoname(ifindex)
    except OSError:
        return False
    return True
