"""The messages that endpoints and nodes need of route netlink, and what their answers say."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from services.loader.netlink.route_socket import NLM_F_ACK as NLM_F_ACK
from services.loader.netlink.route_socket import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    attr,
    attributes,
    number_of,
    text_attr,
    text_of,
    u32_attr,
)
from services.loader.netlink.route_socket import Message as Message
from services.loader.netlink.route_socket import NetlinkError as NetlinkError
from services.loader.netlink.route_socket import RouteSocket as RouteSocket

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34


IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5
IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_EXT_MASK = 18, 26, 28, 29
IFLA_OPERSTATE, IFLA_LINK_NETNSID, IFLA_TARGET_NETNSID = 16, 37, 46
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_VETH_INFO_PEER = 1
_IFLA_INET_CONF, _IPV4_DEVCONF_RP_FILTER = 1, 8
_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE = 8, 1
_RTEXT_FILTER_SKIP_STATS = 8

IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_NODAD = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
FRA_SRC, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL = 2, 6, 15, 21
_FR_ACT_TO_TBL = 1
RTNH_F_ONLINK = 4
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
RTAX_MTU = 2
RT_TABLE_UNSPEC, RT_TABLE_MAIN = 0, 254
RTPROT_STATIC = 4
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
_RTN_UNICAST = 1

IFF_UP = 0x1
IF_OPER_UP = 6

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says about one device.

    ``mac`` is ``aa:bb:…``. ``peer_netnsid`` is the number that the device's namespace has for its peer's,
    None for a peer in the same one. ``ready`` means that packets which are sent now go out: it is up,
    connected, and the kernel has seen to its queues.
    """

    ifindex: int
    name: str
    flags: int
    mtu: int
    mac: str
    kind: str
    peer_ifindex: int
    peer_netnsid: int | None
    ready: bool

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """One route of the main table; ``dst`` and ``gateway`` are empty when absent, ``mtu`` is 0.

    ``prefix_len`` 0 with an empty ``dst`` is the default route of the family that was asked for.
    """

    dst: str
    prefix_len: int
    gateway: str
    oif: int
    scope: int
    mtu: int
    protocol: int = 0


@dataclass(frozen=True, slots=True)
class RuleInfo:
    """A rule: what comes from the address ``source`` is routed by ``table``."""

    source: str
    table: int
    priority: int
    protocol: int


@dataclass(frozen=True, slots=True)
class NeighbourInfo:
    """A permanent neighbour entry: who has an address on a device."""

    ifindex: int
    address: str
    mac: str


# -- messages


def create_veth(name: str, mac: str, mtu: int, peer_name: str, peer_mac: str, peer_netns_fd: int) -> Message:
    """A veth pair whose peer is born in another namespace, and is never to be seen in this one."""
    return create_pair("veth", _VETH_INFO_PEER, (), name, mac, mtu, peer_name, peer_mac, peer_netns_fd)


def create_pair(
    kind: str,
    peer_attribute: int,
    options: Iterable[tuple[int, int]],
    name: str,
    mac: str,
    mtu: int,
    peer_name: str,
    peer_mac: str,
    peer_netns_fd: int,
) -> Message:
    """A pair of devices of a kind that says by ``peer_attribute`` what the other one is to be.

    ``options`` are the kind's own, each a number of 32 bits.
    """
    peer = _IFINFO.pack(0, 0, 0, 0, 0) + b"".join(
        (
            text_attr(IFLA_IFNAME, peer_name),
            attr(IFLA_ADDRESS, mac_bytes(peer_mac)),
            u32_attr(IFLA_MTU, mtu),
            u32_attr(IFLA_NET_NS_FD, peer_netns_fd),
        )
    )
    data = attr(_IFLA_INFO_DATA, attr(peer_attribute, peer) + _options(options))
    body = b"".join(
        (
            _IFINFO.pack(0, 0, 0, 0, 0),
            text_attr(IFLA_IFNAME, name),
            attr(IFLA_ADDRESS, mac_bytes(mac)),
            u32_attr(IFLA_MTU, mtu),
            attr(IFLA_LINKINFO, text_attr(_IFLA_INFO_KIND, kind) + data),
        )
    )
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    return Message(f"create {kind} {name} with peer {peer_name}", RTM_NEWLINK, flags, body)


def create_device(name: str, kind: str, options: Iterable[tuple[int, int]] = ()) -> Message:
    """One device of a kind, with options as for :func:`create_pair`."""
    info = text_attr(_IFLA_INFO_KIND, kind) + attr(_IFLA_INFO_DATA, _options(options))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text_attr(IFLA_IFNAME, name) + attr(IFLA_LINKINFO, info)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    return Message(f"create {kind} {name}", RTM_NEWLINK, flags, body)


def _options(options: Iterable[tuple[int, int]]) -> bytes:
    return b"".join(u32_attr(kind, value) for kind, value in options)


def set_up(name: str, *, up: bool = True) -> Message:
    """Brings a device up or down."""
    body = _IFINFO.pack(0, 0, 0, IFF_UP if up else 0, IFF_UP) + text_attr(IFLA_IFNAME, name)
    return Message(f"set {name} {'up' if up else 'down'}", RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, body)


def no_reverse_path_filter(name: str) -> Message:
    """The device takes packets from any source address."""
    conf = attr(_IFLA_INET_CONF, u32_attr(_IPV4_DEVCONF_RP_FILTER, 0))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text_attr(IFLA_IFNAME, name)
    body += attr(IFLA_AF_SPEC, attr(socket.AF_INET, conf))
    return Message(f"configure {name}", RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, body)


def no_autoconf(name: str) -> Message:
    """The device makes no IPv6 address of its own when it comes up.

    Where it has no IPv6 at all (a kernel without, an MTU below 1280) there is nothing to be done.
    """
    mode = attr(_IFLA_INET6_ADDR_GEN_MODE, bytes((_IN6_ADDR_GEN_MODE_NONE,)))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text_attr(IFLA_IFNAME, name)
    body += attr(IFLA_AF_SPEC, attr(socket.AF_INET6, mode))
    flags = NLM_F_REQUEST | NLM_F_ACK
    return Message(f"configure {name}", RTM_NEWLINK, flags, body, tolerated=(errno.EAFNOSUPPORT,))


def delete_link(name: str) -> Message:
    """Deletes a device; the kernel takes a veth's peer with it."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text_attr(IFLA_IFNAME, name)
    return Message(f"delete {name}", RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, body)


def get_link(name: str) -> Message:
    """Asks for one device; ENODEV when there is none."""
    body = (
        _IFINFO.pack(0, 0, 0, 0, 0)
        + text_attr(IFLA_IFNAME, name)
        + u32_attr(IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
    )
    return Message(f"look up {name}", RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, body)


def get_peer(netnsid: int, ifindex: int) -> Message:
    """Asks for a device of another namespace, by the number which this namespace has for that."""
    body = _IFINFO.pack(0, 0, ifindex, 0, 0) + u32_attr(IFLA_TARGET_NETNSID, netnsid)
    body += u32_attr(IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
    return Message(f"look up the peer with index {ifindex}", RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, body)


def dump_links() -> Message:
    """Asks for all devices."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + u32_attr(IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
    return Message("list devices", RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, body)


def add_address(ifindex: int, address: str, prefix_len: int = 0) -> Message:
    """Gives a device an address, as a /32 or /128 unless said otherwise.

    An IPv6 address is usable at once: nobody else can have it, so nobody is asked (RFC 4862, 5.4).
    """
    family, raw = _address(address)
    length = prefix_len or len(raw) * 8
    flags = IFA_F_NODAD if family == socket.AF_INET6 else 0
    scope = RT_SCOPE_LINK if address.startswith("fe80:") else RT_SCOPE_UNIVERSE
    body = _IFADDR.pack(family, length, flags, scope, ifindex)
    body += attr(IFA_LOCAL, raw) + attr(IFA_ADDRESS, raw)
    create = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    return Message(f"add address {address}/{length}", RTM_NEWADDR, create, body)


def dump_addresses(family: int = socket.AF_INET) -> Message:
    """Asks for all addresses of a family."""
    body = _IFADDR.pack(family, 0, 0, 0, 0)
    return Message("list addresses", RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, body)


def add_link_route(ifindex: int, dst: str, *, metric: int = 0, table: int = RT_TABLE_MAIN) -> Message:
    """A host route: ``dst`` is reachable directly through the device. With a ``metric`` (0: the kernel's) it
    goes beside other devices' routes to the same address.
    """
    family, raw = _address(dst)
    length = len(raw) * 8
    body = _rtmsg(family, length, RT_SCOPE_LINK, table=table) + u32_attr(RTA_TABLE, table)
    body += attr(RTA_DST, raw) + u32_attr(RTA_OIF, ifindex)
    body += u32_attr(RTA_PRIORITY, metric) if metric else b""
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    return Message(f"add route {dst}/{length}", RTM_NEWROUTE, flags, body)


def add_default_route(
    ifindex: int, gateway: str, mtu: int, *, onlink: bool = False, table: int = RT_TABLE_MAIN
) -> Message:
    """The default route of the gateway's family; ``mtu`` is the largest packet that goes along it, in bytes.

    ``onlink``: the gateway is on the device's link, whatever other routes say.
    """
    family, raw = _address(gateway)
    body = b"".join(
        (
            _rtmsg(family, 0, RT_SCOPE_UNIVERSE, flags=RTNH_F_ONLINK if onlink else 0, table=table),
            u32_attr(RTA_TABLE, table),
            attr(RTA_GATEWAY, raw),
            u32_attr(RTA_OIF, ifindex),
            attr(RTA_METRICS, u32_attr(RTAX_MTU, mtu)),
        )
    )
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    return Message(f"add default route via {gateway}", RTM_NEWROUTE, flags, body)


def add_source_rule(source: str, table: int, priority: int, protocol: int) -> Message:
    """What is sent from ``source`` is routed by ``table``; ``protocol`` tells whose rule it is."""
    body = _rule(RuleInfo(source, table, priority, protocol))
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    return Message(f"add rule from {source} lookup {table}", RTM_NEWRULE, flags, body)


def delete_source_rule(rule: RuleInfo) -> Message:
    """Removes what :func:`add_source_rule` made; one that is not there is fine."""
    flags = NLM_F_REQUEST | NLM_F_ACK
    return Message(f"delete rule from {rule.source}", RTM_DELRULE, flags, _rule(rule), (errno.ENOENT,))


def dump_rules(family: int = socket.AF_INET) -> Message:
    """Asks for a family's routing rules."""
    body = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return Message("list rules", RTM_GETRULE, NLM_F_REQUEST | NLM_F_DUMP, body)


def put_endpoint_route(ifindex: int, dst: str, source: str, protocol: int) -> Message:
    """A host route to a pod through its device; the node itself sends from ``source``."""
    family, raw = _address(dst)
    length = len(raw) * 8
    body = b"".join(
        (
            _rtmsg(family, length, RT_SCOPE_LINK, protocol=protocol),
            attr(RTA_DST, raw),
            u32_attr(RTA_OIF, ifindex),
            attr(RTA_PREFSRC, _address(source)[1]) if source else b"",
        )
    )
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    return Message(f"set route {dst}/{length}", RTM_NEWROUTE, flags, body)


def delete_endpoint_route(ifindex: int, dst: str, protocol: int) -> Message:
    """Removes what :func:`put_endpoint_route` made; ESRCH when it is not there."""
    family, raw = _address(dst)
    length = len(raw) * 8
    body = _rtmsg(family, length, RT_SCOPE_LINK, protocol=protocol)
    body += attr(RTA_DST, raw) + u32_attr(RTA_OIF, ifindex)
    gone = (errno.ESRCH,)
    return Message(f"delete route {dst}/{length}", RTM_DELROUTE, NLM_F_REQUEST | NLM_F_ACK, body, gone)


def dump_routes(family: int = socket.AF_INET, table: int = RT_TABLE_MAIN) -> Message:
    """Asks for a family's routes of a table; one that is not there has none."""
    short = table if table < 256 else RT_TABLE_UNSPEC
    body = _RTMSG.pack(family, 0, 0, 0, short, 0, 0, 0, 0)
    body += u32_attr(RTA_TABLE, table) if table > 255 else b""
    return Message("list routes", RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, body, (errno.ENOENT,))


def put_neighbour(ifindex: int, address: str, mac: str) -> Message:
    """A permanent neighbour entry: nobody on the link is asked for the address."""
    family, raw = _address(address)
    body = _NDMSG.pack(family, ifindex, NUD_PERMANENT, 0, 0)
    body += attr(NDA_DST, raw) + attr(NDA_LLADDR, mac_bytes(mac))
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    return Message(f"set neighbour {address}", RTM_NEWNEIGH, flags, body)


def delete_neighbour(ifindex: int, address: str) -> Message:
    """Removes a neighbour entry; one that is not there is fine."""
    family, raw = _address(address)
    body = _NDMSG.pack(family, ifindex, 0, 0, 0) + attr(NDA_DST, raw)
    gone = (errno.ENOENT,)
    return Message(f"delete neighbour {address}", RTM_DELNEIGH, NLM_F_REQUEST | NLM_F_ACK, body, gone)


def dump_neighbours(family: int = socket.AF_INET) -> Message:
    """Asks for all neighbour entries of a family."""
    body = _NDMSG.pack(family, 0, 0, 0, 0)
    return Message("list neighbours", RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, body)


# -- answers


def links(payloads: list[tuple[int, bytes]]) -> list[LinkInfo]:
    """The devices in an answer."""
    return [_link(payload) for kind, payload in payloads if kind == RTM_NEWLINK]


def addresses(payloads: list[tuple[int, bytes]]) -> list[tuple[int, str]]:
    """(ifindex, ``address/prefix``) of each address in an answer."""
    found = []
    for kind, payload in payloads:
        if kind != RTM_NEWADDR:
            continue
        _, prefix_len, _, _, ifindex = _IFADDR.unpack_from(payload)
        attrs = dict(attributes(payload, _IFADDR.size))
        local = attrs.get(IFA_LOCAL) or attrs.get(IFA_ADDRESS)
        if local is not None:
            found.append((ifindex, f"{_address_text(local)}/{prefix_len}"))
    return found


def routes(payloads: list[tuple[int, bytes]], *, table: int = RT_TABLE_MAIN) -> list[RouteInfo]:
    """The unicast routes of a table in an answer."""
    found = []
    for kind, payload in payloads:
        if kind != RTM_NEWROUTE:
            continue
        _, prefix_len, _, _, _, protocol, scope, route_type, _ = _RTMSG.unpack_from(payload)
        if route_type != _RTN_UNICAST:
            continue
        attrs = dict(attributes(payload, _RTMSG.size))
        if number_of(attrs.get(RTA_TABLE)) != table:
            continue
        metrics = dict(attributes(attrs.get(RTA_METRICS, b""), 0))
        found.append(
            RouteInfo(
                dst=_address_text(attrs.get(RTA_DST)),
                prefix_len=prefix_len,
                gateway=_address_text(attrs.get(RTA_GATEWAY)),
                oif=number_of(attrs.get(RTA_OIF)),
                scope=scope,
                mtu=number_of(metrics.get(RTAX_MTU)),
                protocol=protocol,
            )
        )
    return found


def rules(payloads: list[tuple[int, bytes]]) -> list[RuleInfo]:
    """The rules in an answer that select by one source address and name a table."""
    found = []
    for kind, payload in payloads:
        if kind != RTM_NEWRULE:
            continue
        attrs = dict(attributes(payload, _RTMSG.size))
        source, length = _address_text(attrs.get(FRA_SRC)), _RTMSG.unpack_from(payload)[2]
        if source and length == len(attrs[FRA_SRC]) * 8:
            table, priority = number_of(attrs.get(FRA_TABLE)), number_of(attrs.get(FRA_PRIORITY))
            found.append(RuleInfo(source, table, priority, number_of(attrs.get(FRA_PROTOCOL))))
    return found


def neighbours(payloads: list[tuple[int, bytes]]) -> list[NeighbourInfo]:
    """The permanent neighbour entries in an answer."""
    found = []
    for kind, payload in payloads:
        if kind != RTM_NEWNEIGH:
            continue
        _, ifindex, state, _, _ = _NDMSG.unpack_from(payload)
        attrs = dict(attributes(payload, _NDMSG.size))
        if state & NUD_PERMANENT:
            address = _address_text(attrs.get(NDA_DST))
            found.append(NeighbourInfo(ifindex, address, attrs.get(NDA_LLADDR, b"").hex(":")))
    return found


def mac_bytes(mac: str) -> bytes:
    """``aa:bb:cc:dd:ee:ff`` as six bytes. Raises ValueError for anything else."""
    raw = bytes.fromhex(mac.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"{mac!r} is not a MAC address")
    return raw


def _link(payload: bytes) -> LinkInfo:
    _, _, ifindex, flags, _ = _IFINFO.unpack_from(payload)
    attrs = dict(attributes(payload, _IFINFO.size))
    info = dict(attributes(attrs.get(IFLA_LINKINFO, b""), 0))
    return LinkInfo(
        ifindex=ifindex,
        name=text_of(attrs.get(IFLA_IFNAME)),
        flags=flags,
        mtu=number_of(attrs.get(IFLA_MTU)),
        mac=attrs.get(IFLA_ADDRESS, b"").hex(":"),
        kind=text_of(info.get(_IFLA_INFO_KIND)),
        peer_ifindex=number_of(attrs.get(IFLA_LINK)),
        peer_netnsid=number_of(attrs[IFLA_LINK_NETNSID]) if IFLA_LINK_NETNSID in attrs else None,
        ready=number_of(attrs.get(IFLA_OPERSTATE)) == IF_OPER_UP,
    )


def _rtmsg(
    family: int,
    prefix_len: int,
    scope: int,
    *,
    protocol: int = RTPROT_STATIC,
    flags: int = 0,
    table: int = RT_TABLE_MAIN,
) -> bytes:
    # A table beyond 255 is named by an attribute alone.
    short = table if table < 256 else RT_TABLE_UNSPEC
    return _RTMSG.pack(family, prefix_len, 0, 0, short, protocol, scope, _RTN_UNICAST, flags)


def _rule(rule: RuleInfo) -> bytes:
    family, raw = _address(rule.source)
    return b"".join(
        (
            # struct fib_rule_hdr: family, dst_len, src_len, tos, table, 2 reserved, action, flags
            _RTMSG.pack(family, 0, len(raw) * 8, 0, RT_TABLE_UNSPEC, 0, 0, _FR_ACT_TO_TBL, 0),
            attr(FRA_SRC, raw),
            u32_attr(FRA_PRIORITY, rule.priority),
            u32_attr(FRA_TABLE, rule.table),
            attr(FRA_PROTOCOL, bytes([rule.protocol])),
        )
    )


def _address(text: str) -> tuple[int, bytes]:
    """Family and bytes of an address."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return family, socket.inet_pton(family, text)


def _address_text(value: bytes | None) -> str:
    if value is None or len(value) not in (4, 16):
        return ""
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)
