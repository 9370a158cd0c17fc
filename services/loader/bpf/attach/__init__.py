"""Puts programs on devices, always in place: what is there forwards until the moment the new one does.

Endpoint devices get clsact with direct-action filters (0.2 ms for a new device; a first tcx link waits 8-16
ms for an RCU grace period under RTNL). The node's own devices get tcx links where the kernel has them (>=
6.6), pinned, so that they outlive the loader. Other people's programs on a device are never removed, replaced
or moved.

From one to the other no packet goes by unfiltered, and none is filtered twice: the new attachment is made
before the old one goes, tcx runs before clsact, and the datapath's programs always give a final verdict
(never TC_ACT_UNSPEC), behind which nothing else is asked.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from services.loader.bpf.attach.clsact import FilterSocket, attach_all, filters, remove_all
from services.loader.bpf.attach.declarations import NETKIT_PEER, NETKIT_PRIMARY, programs_at
from services.loader.bpf.attach.links import LinkState, link_state, pin_replacing, remove_link
from services.loader.bpf.attach.ownership import Ownership
from services.loader.bpf.attach.places import (
    Anchor,
    Attached,
    Attachment,
    Hook,
    Kind,
    Mode,
    Place,
    TcxMissing,
)
from services.loader.bpf.attach.tcx import TCX, attach_link, has_tcx, link_program
from services.loader.bpf.attach.xdp import attach_xdp, xdp_programs
from services.loader.bpf.errors import BpfError
from services.loader.netlink.rtnetlink import NetlinkError

__all__ = [
    "Anchor", "Attached", "Attachment", "Hook", "Kind", "LinkState", "Mode", "Ownership", "Place",
    "TcxMissing", "attach", "attach_filters", "attach_link", "attach_many", "attach_xdp", "attachments",
    "detach", "filter_program", "has_tcx", "link_program", "link_state", "pin_replacing", "remove_link",
    "xdp_programs",
]  # fmt: skip

_NETKIT = {"netkit-primary": NETKIT_PRIMARY, "netkit-peer": NETKIT_PEER}


def attach_many(
    places: Sequence[Place],
    *,
    mode: Mode = Mode.CLSACT,
    anchor: Anchor = Anchor.LAST,
    ours: Ownership | None = None,
) -> list[Attached]:
    """Attaches programs to all these places, each in place, and removes what of ours held them otherwise.

    A place's refusal (a device that is gone, for one) is in its result and touches no other. ``ours``
    recognises this node's programs; without it, those that share a map with the new ones. Places whose
    ``pin`` is "" get filters whatever the mode. Raises TcxMissing for Mode.TCX where the kernel has none, and
    BpfError when the kernel does not answer at all.
    """
    ours = ours or Ownership.of_programs(place.program for place in places)
    results: dict[int, Attached] = {}
    filtered: list[int] = []
    for index, place in enumerate(places):
        if mode is Mode.CLSACT or not place.pin:
            filtered.append(index)
            continue
        try:
            if attach_link(place.pin, place.ifindex, place.hook, place.program, anchor):
                results[index] = Attached(place, Kind.TCX)
            elif mode is Mode.TCX:
                raise TcxMissing
            else:
                filtered.append(index)
        except BpfError as problem:
            results[index] = Attached(place, None, problem)
        except OSError as problem:
            results[index] = Attached(place, None, _bpf_error(problem, f"attach to {place}"))
    # The new ones are there: the old ones have no packet left to see.
    linked = [each.place for each in results.values() if each.kind is Kind.TCX]
    with _refusals("attach filters"):
        for index, result in zip(
            filtered, attach_all([places[each] for each in filtered], ours), strict=True
        ):
            results[index] = result
            if result.kind is not None and result.place.pin:
                remove_link(result.place.pin)
        remove_all(linked, ours)
    return [results[index] for index in range(len(places))]


def attach(
    places: Sequence[Place],
    *,
    mode: Mode = Mode.CLSACT,
    anchor: Anchor = Anchor.LAST,
    ours: Ownership | None = None,
) -> list[Kind]:
    """As :func:`attach_many`. Raises the first refusal, when all places have been tried."""
    kinds = []
    for result in attach_many(places, mode=mode, anchor=anchor, ours=ours):
        if result.error is not None:
            raise result.error
        assert result.kind is not None
        kinds.append(result.kind)
    return kinds


def detach(places: Sequence[Place], ours: Ownership | None = None) -> None:
    """Removes our programs from these places, links and filters alike. What is not there is fine. The clsact
    qdisc stays: others may be about to use it.

    Raises BpfError.
    """
    ours = ours or Ownership.of_programs(place.program for place in places)
    with _refusals("detach"):
        for place in places:
            if place.pin:
                remove_link(place.pin)
        for error in remove_all(places, ours):
            raise error


def attachments(ifindexes: Iterable[int], ours: Ownership) -> dict[int, list[Attachment]]:
    """What of ours is on each of these devices, in the order in which it runs. Devices that are gone have
    nothing.
    """
    found: dict[int, list[Attachment]] = {}
    with FilterSocket() as route:
        for ifindex in dict.fromkeys(ifindexes):
            here = [
                Attachment(ifindex, "xdp", each.kind, each.program)
                for each in xdp_programs(ifindex, route)
                if ours.owns(each.program)
            ]
            for name, attach_type in _NETKIT.items():
                here += _held(ifindex, name, Kind.NETKIT, programs_at(ifindex, attach_type), ours)
            for hook in Hook:
                here += _held(ifindex, hook.label, Kind.TCX, programs_at(ifindex, TCX[hook]), ours)
                try:
                    filtering = [each.program for each in filters(route, ifindex, hook)]
                except NetlinkError:
                    filtering = []
                here += _held(ifindex, hook.label, Kind.CLSACT, filtering, ours)
            found[ifindex] = here
    return found


@contextmanager
def _refusals(operation: str) -> Iterator[None]:
    """Pins and sockets refuse with OSError; whoever attaches is told by BpfError alone."""
    try:
        yield
    except OSError as problem:
        raise _bpf_error(problem, operation) from problem


def _bpf_error(problem: OSError, operation: str) -> BpfError:
    return BpfError(problem.errno or errno.EIO, operation, str(problem))


def _held(ifindex: int, hook: str, kind: Kind, programs: Iterable[int], ours: Ownership) -> list[Attachment]:
    return [
        Attachment(ifindex, hook, kind, program) for program in programs if program and ours.owns(program)
    ]


def attach_filters(ifindex: int, programs: Mapping[Hook, int]) -> None:
    """Attaches programs (by descriptor) with clsact to a device that is exclusively ours, replacing ours of
    before.

    Raises BpfError; ENODEV: no device.
    """
    attach([Place(ifindex, hook, program, exclusive=True) for hook, program in programs.items()])


def filter_program(ifindex: int, point: Hook) -> int | None:
    """The kernel id of the first BPF program among the filters on a device's hook, or None."""
    try:
        with FilterSocket() as route:
            return next((each.program for each in filters(route, ifindex, point) if each.program), None)
    except NetlinkError:
        return None
