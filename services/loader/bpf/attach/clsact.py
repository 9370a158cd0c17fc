"""Filters of a clsact qdisc with direct action: the program's verdict is the filter's.

Filters run in the order of their priorities. Ours keeps the one that it has; a new one takes the lowest that
is free, whatever that is on a device which others filter on too. Theirs are neither replaced nor removed.

Through libbpf each filter costs a socket; here one socket carries all of a round, in messages that the kernel
works through in one go (a filter replaced: 11 µs instead of 30-40).
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.loader.bpf.attach.ownership import Ownership, program_name
from services.loader.bpf.attach.places import Attached, Hook, Kind, Place
from services.loader.bpf.errors import BpfError
from services.loader.failpoints import passed
from services.loader.netlink.route_socket import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    Message,
    NetlinkError,
    RouteSocket,
    attr,
    attributes,
    text_attr,
    text_of,
    u32_attr,
)

# linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h
_RTM_NEWQDISC, _RTM_GETQDISC = 36, 38
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _TCA_BPF_ID = 6, 7, 8, 11
_TCA_BPF_FLAG_ACT_DIRECT = 1
_CLSACT_PARENT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_PARENTS = {Hook.INGRESS: 0xFFFFFFF2, Hook.EGRESS: 0xFFFFFFF3}
_ETH_P_ALL = 0x0300 if sys.byteorder == "little" else 0x0003  # htons
_HANDLE = 1
_LAST_PRIORITY = 0xFFFF
_TRIES = 3

_TCMSG = struct.Struct("=BxxxiIII")
# A batch's acknowledgements have to fit into the socket's receive buffer, 208 KiB unless somebody changed it.
_BATCH = 64
_NLM_F_ECHO = 0x8
_ACKED = NLM_F_REQUEST | NLM_F_ACK


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter as it is on a hook; ``program`` is the kernel's id, 0 for one that is no BPF program. A
    priority that is taken and has no filter yet comes with handle 0.
    """

    priority: int
    handle: int
    kind: str
    program: int


class FilterSocket(RouteSocket):
    """A route socket whose messages have outcomes of their own."""

    def __enter__(self) -> FilterSocket:
        return self

    def outcomes(self, messages: Sequence[Message]) -> list[NetlinkError | None]:
        """Sends all; what the kernel refused of each."""
        errors: list[NetlinkError | None] = []
        for start in range(0, len(messages), _BATCH):
            errors += [reply.error for reply in self._exchange(messages[start : start + _BATCH])]
        return errors


def attach_all(places: Sequence[Place], ours: Ownership) -> list[Attached]:
    """Attaches the programs; what of ours is there is replaced in place. Each place has a result of its own,
    in the order given.
    """
    if not places:
        return []
    results: dict[int, Attached] = {}
    with FilterSocket() as route:
        refused = _make_qdiscs(route, {place.ifindex for place in places})
        waiting = list(range(len(places)))
        for _ in range(_TRIES):
            again = []
            for index, error in zip(
                waiting, _attach(route, [places[each] for each in waiting], refused, ours), strict=True
            ):
                results[index] = Attached(places[index], None if error else Kind.CLSACT, error)
                if error is not None and error.errno == errno.EEXIST and not refused:
                    # Somebody took the priority that was free: there is another.
                    again.append(index)
            waiting = again
    return [results[index] for index in range(len(places))]


def _attach(
    route: FilterSocket, places: Sequence[Place], refused: dict[int, NetlinkError], ours: Ownership
) -> list[BpfError | None]:
    errors: list[NetlinkError | None] = []
    planned: dict[int, Message] = {}
    surplus: list[Message] = []
    for index, place in enumerate(places):
        errors.append(refused.get(place.ifindex))
        if errors[index] is not None:
            continue
        try:
            planned[index], others = _plan(place, _filters(route, place.ifindex, place.hook), ours)
            surplus += others
        except NetlinkError as problem:
            errors[index] = problem
    for index, error in zip(planned, route.outcomes(list(planned.values())), strict=True):
        errors[index] = error
        passed("attach.filter")
    route.outcomes(surplus)
    return [None if error is None else _bpf_error(error) for error in errors]


def remove_all(places: Iterable[Place], ours: Ownership) -> list[BpfError]:
    """Removes our filters from hooks; returns what was refused. A device that is gone has none."""
    places = list(places)
    if not places:
        return []
    with FilterSocket() as route:
        messages = []
        for place in places:
            found = _ours(place, _filters(route, place.ifindex, place.hook), ours)
            messages += [_delete(place, each) for each in found]
        return [_bpf_error(error) for error in route.outcomes(messages) if error is not None]


def filters(route: FilterSocket, ifindex: int, hook: Hook) -> list[Filter]:
    """The filters on a hook in the order in which they run; none where there is no clsact qdisc."""
    return [found for found in _filters(route, ifindex, hook) if found.handle]


def _make_qdiscs(route: FilterSocket, ifindexes: set[int]) -> dict[int, NetlinkError]:
    """Gives the devices clsact qdiscs; returns those where that is not possible, with why."""
    refused: dict[int, NetlinkError] = {}
    for ifindex in sorted(ifindexes):
        body = _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT_PARENT, 0) + text_attr(_TCA_KIND, "clsact")
        operation = f"add clsact to device {ifindex}"
        try:
            route.request([Message(operation, _RTM_NEWQDISC, _ACKED | NLM_F_CREATE | NLM_F_EXCL, body)])
        except NetlinkError as problem:
            if problem.errno != errno.EEXIST:
                refused[ifindex] = problem
            elif _qdisc(route, ifindex) == "ingress":
                # It would take the filters for egress too, and run them at ingress. It is somebody else's:
                # replacing it would remove their filters.
                refused[ifindex] = NetlinkError(
                    errno.EEXIST,
                    operation,
                    "it has an ingress qdisc; remove it, or let FIMBRIA_ATTACH_MODE be tcx",
                )
    return refused


def _qdisc(route: FilterSocket, ifindex: int) -> str:
    body = _TCMSG.pack(0, ifindex, 0, _CLSACT_PARENT, 0)
    try:
        ((answer, *_),) = route.request(
            # Without ECHO the answer goes to those that listen, and not to who asked.
            [Message(f"look up the qdisc of device {ifindex}", _RTM_GETQDISC, _ACKED | _NLM_F_ECHO, body)]
        )
    except (NetlinkError, ValueError):
        return ""
    return text_of(dict(attributes(answer[1], _TCMSG.size)).get(_TCA_KIND, b""))


def _filters(route: FilterSocket, ifindex: int, hook: Hook) -> list[Filter]:
    body = _TCMSG.pack(0, ifindex, 0, _PARENTS[hook], 0)
    operation = f"list filters at {hook.label} of device {ifindex}"
    (answers,) = route.request([Message(operation, _RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, body)])
    found = []
    for kind, payload in answers:
        if kind != _RTM_NEWTFILTER:
            continue
        _, device, handle, _, info = _TCMSG.unpack_from(payload)
        if device != ifindex:
            # A block that several devices share is none of one device's.
            continue
        found_attributes = dict(attributes(payload, _TCMSG.size))
        options = dict(attributes(found_attributes.get(_TCA_OPTIONS, b""), 0))
        program = int.from_bytes(options.get(_TCA_BPF_ID, b""), sys.byteorder)
        kind_name = text_of(found_attributes.get(_TCA_KIND, b""))
        found.append(Filter(info >> 16, handle, kind_name, program if kind_name == "bpf" else 0))
    return sorted(found, key=lambda each: each.priority)


def _ours(place: Place, found: Iterable[Filter], ours: Ownership) -> list[Filter]:
    mine = [each for each in found if each.program]
    if not mine:
        return []
    name = program_name(place.program) if place.exclusive else ""
    return [each for each in mine if ours.owns(each.program) or (name and ours.name(each.program) == name)]


def _plan(place: Place, found: list[Filter], ours: Ownership) -> tuple[Message, list[Message]]:
    """The message that attaches, and those that remove what else of ours is there."""
    held = _ours(place, found, ours)
    if held:
        return _put(place, held[0].priority, held[0].handle, 0), [_delete(place, each) for each in held[1:]]
    taken = {each.priority for each in found}
    priority = next(number for number in range(1, _LAST_PRIORITY + 1) if number not in taken)
    # EXCL: if somebody takes that priority at this moment, it stays theirs.
    return _put(place, priority, _HANDLE, NLM_F_EXCL), []


def _put(place: Place, priority: int, handle: int, flags: int) -> Message:
    options = u32_attr(_TCA_BPF_FD, place.program) + text_attr(_TCA_BPF_NAME, program_name(place.program))
    options += u32_attr(_TCA_BPF_FLAGS, _TCA_BPF_FLAG_ACT_DIRECT)
    body = _tcmsg(place, priority, handle) + text_attr(_TCA_KIND, "bpf") + attr(_TCA_OPTIONS, options)
    return Message(f"attach to {place}", _RTM_NEWTFILTER, _ACKED | NLM_F_CREATE | flags, body)


def _delete(place: Place, found: Filter) -> Message:
    body = _tcmsg(place, found.priority, found.handle) + text_attr(_TCA_KIND, found.kind)
    gone = (errno.ENOENT, errno.ENODEV)
    return Message(f"remove the filter from {place}", _RTM_DELTFILTER, _ACKED, body, gone)


def _tcmsg(place: Place, priority: int, handle: int) -> bytes:
    return _TCMSG.pack(0, place.ifindex, handle, _PARENTS[place.hook], priority << 16 | _ETH_P_ALL)


def _bpf_error(problem: NetlinkError) -> BpfError:
    return BpfError(problem.errno or errno.EIO, problem.operation, problem.kernel_message)
