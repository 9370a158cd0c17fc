"""XDP by link: in the driver where it can, else in the stack (generic), pinned and replaced in place."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from services.loader.bpf.attach.declarations import LINK_XDP, XDP, create_link
from services.loader.bpf.attach.links import LinkState, put_link
from services.loader.bpf.attach.places import Kind
from services.loader.bpf.errors import BpfError
from services.loader.bpf.native import check, said
from services.loader.netlink.route_socket import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    Message,
    NetlinkError,
    RouteSocket,
    attributes,
    number_of,
)
from services.loader.netlink.rtnetlink import RTM_GETLINK

# linux/if_link.h
_XDP_FLAGS_SKB_MODE, _XDP_FLAGS_DRV_MODE = 1 << 1, 1 << 2
_IFLA_XDP, _IFLA_XDP_ATTACHED, _IFLA_XDP_PROG_ID = 43, 2, 4
_IFLA_XDP_DRV_PROG_ID, _IFLA_XDP_SKB_PROG_ID = 5, 6
_KINDS = {1: Kind.XDP_NATIVE, 2: Kind.XDP_GENERIC}
_IFINFO = struct.Struct("=BxHiII")
# What drivers say that have no XDP of their own, or not with this MTU or these features.
_NO_NATIVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE, errno.E2BIG)


@dataclass(frozen=True, slots=True)
class XdpProgram:
    """A program on a device's XDP hook: the kernel's id, and where it runs."""

    program: int
    kind: Kind


def attach_xdp(pin: str, ifindex: int, program: int) -> Kind:
    """Attaches an XDP program (by descriptor) to a device by a link pinned at ``pin``; returns where it runs.

    The link that is pinned there is updated in place, in the mode that it has, if it holds this device.
    Raises BpfError: EBUSY where a program of somebody else is, which stays.
    """

    def holds(state: LinkState) -> bool:
        return (state.kind, state.ifindex) == (LINK_XDP, ifindex)

    def create() -> int:
        native = create_link(program, ifindex, XDP, _XDP_FLAGS_DRV_MODE)
        detail = said()
        if -native not in _NO_NATIVE:
            return _created(native, ifindex, detail)
        return _created(create_link(program, ifindex, XDP, _XDP_FLAGS_SKB_MODE), ifindex, said() or detail)

    put_link(pin, program, holds, create)
    found = xdp_programs(ifindex)
    if not found:
        raise BpfError(errno.ENODEV, f"attach to xdp of device {ifindex}")
    return found[0].kind


def xdp_programs(ifindex: int, route: RouteSocket | None = None) -> list[XdpProgram]:
    """What runs on a device's XDP hook, native first; anybody's. None where there is no such device."""
    body = _IFINFO.pack(0, 0, ifindex, 0, 0)
    message = Message(f"look up device {ifindex}", RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, body)
    try:
        if route is None:
            with RouteSocket() as own:
                ((_, payload), *_), *_ = own.request([message])
        else:
            ((_, payload), *_), *_ = route.request([message])
    except NetlinkError:
        return []
    xdp = dict(attributes(dict(attributes(payload, _IFINFO.size)).get(_IFLA_XDP, b""), 0))
    found = []
    for attribute, kind in ((_IFLA_XDP_DRV_PROG_ID, 1), (_IFLA_XDP_SKB_PROG_ID, 2)):
        if attribute in xdp:
            found.append(XdpProgram(number_of(xdp[attribute]), _KINDS[kind]))
    if not found and number_of(xdp.get(_IFLA_XDP_ATTACHED)) in _KINDS:
        attached = _KINDS[number_of(xdp[_IFLA_XDP_ATTACHED])]
        found.append(XdpProgram(number_of(xdp.get(_IFLA_XDP_PROG_ID)), attached))
    return found


def _created(link: int, ifindex: int, detail: str) -> int:
    operation = f"link to xdp of device {ifindex}"
    if link == -errno.EBUSY:
        raise BpfError(errno.EBUSY, operation, "another program is there; it is left alone")
    if link < 0:
        raise BpfError(-link, operation, detail)
    return check(link, operation)
