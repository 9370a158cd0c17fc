"""What the loader process can be told."""

from __future__ import annotations

import ipaddress
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.chassis.errors import InvalidArgument
from services.chassis.labels import SOURCE_K8S, Label, LabelSet, check_value
from services.chassis.settings import CommonSettings, SettingsError, setting
from services.loader.settings_types import (
    FailsafePort,
    cidrs,
    devices,
    failsafe_ports,
    map_sizes,
    node_labels,
    pod_cidrs,
    port_range,
)

HOSTNAME_KEY = "kubernetes.io/hostname"

_CHECKOUT = Path(__file__).resolve().parent.parent.parent
_SOURCES = str(_CHECKOUT / "bpf")
_PREBUILT = str(_CHECKOUT / "build" / "objects")


@dataclass(frozen=True)
class LoaderSettings(CommonSettings):
    """The common settings, and those of the node."""

    listen: tuple[str, ...] = setting(
        ("unix:/run/fimbria/loader.sock",),
        help="Addresses to serve on, comma separated: HOST:PORT (port 0: any free one), unix:/PATH.",
    )
    node_name: str = setting(socket.gethostname, help="Name of the node, unique in the cluster.")
    node_ipv4: str = setting(
        "",
        help="Underlay IPv4 address of the node. Empty: the address that the default route sends from.",
    )
    node_ipv6: str = setting(
        "",
        help="Underlay IPv6 address of the node. Empty: the address that the IPv6 default route sends from, "
        "or none where there is no such route.",
    )
    pool: str = setting("default", help="IPAM pool that the node's pod CIDRs come from.")
    pod_cidr: tuple[str, ...] = setting(
        (),
        help="The node's pod CIDRs, comma separated, where ipam runs in mode kubernetes: the first of each "
        "family holds the router address. Empty in the other modes, in which ipam gives them.",
    )
    ipam_target: str = setting(
        "ipv4:127.0.0.1:4001",
        help="gRPC target of the ipam service; of several replicas: ipv4:ADDRESS:PORT,ADDRESS:PORT.",
    )
    identity_target: str = setting(
        "ipv4:127.0.0.1:4002", help="gRPC target of the identity service, or of its replicas."
    )
    policy_target: str = setting(
        "ipv4:127.0.0.1:4003", help="gRPC target of the policy service, or of its replicas."
    )
    state_dir: str = setting("/var/lib/fimbria/loader", help="Directory of the node's records.")
    bpffs: str = setting("/sys/fs/bpf", help="Where the BPF file system is mounted.")
    pin_dir: str = setting(
        "", help="Directory of the node's pins on the BPF file system. Empty: BPFFS/fimbria/NODE_NAME."
    )
    source_dir: str = setting(_SOURCES, help="Directory of the datapath's C sources.")
    cache_dir: str = setting("/var/cache/fimbria/objects", help="Directory of compiled BPF objects.")
    prebuilt_dir: str = setting(
        _PREBUILT,
        help="Directory of BPF objects that came with the package, taken where their sources and flags are "
        "the node's own; a node that finds its objects there needs no clang. Empty: there are none.",
    )
    attach_mode: Literal["auto", "tcx", "clsact"] = setting(
        "auto",
        help="What holds the programs on the node's own devices: tcx links, filters of a clsact qdisc, or "
        "links where the kernel has them (6.6 and later). A change moves them at the next start, without a "
        "packet that no program sees.",
    )
    endpoint_attach_mode: Literal["auto", "tcx", "clsact"] = setting(
        "clsact",
        help="The same for the devices of endpoints. They are nobody else's, and the first link on a device "
        "waits 8-16 ms for a grace period of the kernel while all other changes of network devices queue "
        "behind it, where a filter takes 0.2 ms: hence clsact.",
    )
    tcx_anchor: Literal["first", "last"] = setting(
        "last",
        help="Where a new tcx link goes when other programs are on the device already: before all of them, "
        "which then see only what Fimbria passes on, or behind them, so that what was there first, a "
        "firewall for example, still sees every packet first. A link that is there keeps its place.",
    )
    cni_socket: str = setting("/run/fimbria/cni.sock", help="Unix socket that the CNI plugin speaks to.")
    cni_queue: str = setting(
        "", help="Directory of DELs that found no loader. Empty: `deletes` beside the CNI socket."
    )
    mtu: int = setting(
        0,
        help="MTU of the node's and the pods' devices. 0: that of the underlay device.",
        minimum=0,
        maximum=65535,
    )
    vxlan_port: int = setting(8472, help="UDP port of the overlay.", minimum=1, maximum=65535)
    routing_mode: Literal["tunnel", "native"] = setting(
        "tunnel",
        help="How packets get to the pods of other nodes: in VXLAN packets, or as they are, routed via the "
        "nodes' own addresses on one network. The same on all nodes.",
    )
    endpoint_routes: bool = setting(
        False,
        help="Give each endpoint routes of its own on the node, and let the node's stack take packets to it.",
    )
    endpoint_device: Literal["veth", "netkit", "auto"] = setting(
        "veth",
        help="What new endpoints' devices are: veth pairs, netkit pairs (Linux 6.7 and later), or netkit "
        "where the kernel has it. Endpoints that are there keep theirs.",
    )
    host_routing: bool = setting(
        True,
        help="Send what leaves by the node's devices there at once, not through the node's stack.",
    )
    devices: tuple[str, ...] = setting(
        (),
        help="The node's devices towards the rest of the world. Empty: those that have the node's addresses.",
    )
    masquerade: bool = setting(
        True, help="Let pods reach what is outside of the cluster with the node's address."
    )
    masquerade_exclude: tuple[str, ...] = setting(
        (), help="CIDRs of either family that pods reach with their own addresses."
    )
    masquerade_ports: str = setting(
        "61000-65535",
        help="Ports of the node's address that masqueraded connections come from, FIRST-LAST within "
        "1024-65535. Nothing else on the node may use them.",
    )
    policy_enforcement: Literal["default", "always", "never"] = setting(
        "default",
        help="Where traffic needs a policy that allows it: in the directions in which a policy selects the "
        "endpoint, everywhere, or nowhere. Everywhere: a BaselineAdminNetworkPolicy decides nothing, as what "
        "the tiers before it do not allow is denied. Nowhere: no policy of any tier counts, nor are those in "
        "audit mode reported.",
    )
    policy_audit: bool = setting(
        False,
        help="Judge policies and tell of what they deny, but drop nothing for them. One policy alone has an "
        "audit mode of its own.",
    )
    host_failsafe_ports: tuple[str, ...] = setting(
        (
            "ingress:22/TCP",
            "ingress:68/UDP",
            "ingress:546/UDP",
            "ingress:4001/TCP",
            "ingress:4002/TCP",
            "ingress:4003/TCP",
            "egress:53/UDP",
            "egress:53/TCP",
            "egress:67/UDP",
            "egress:547/UDP",
            "egress:4001/TCP",
            "egress:4002/TCP",
            "egress:4003/TCP",
        ),
        help="Ports of the node that no policy closes, each ingress:PORT/PROTOCOL or egress:PORT/PROTOCOL "
        "with TCP, UDP or SCTP, so that nobody is locked out of it. The ports of the services' targets come "
        "along; an empty list is none at all.",
    )
    host_firewall: bool = setting(
        True,
        help="Let policies that select the node judge its own traffic. False switches off, at the loader's "
        "start, whatever is in force.",
    )
    node_labels: tuple[str, ...] = setting(
        (),
        help="Labels of the node, KEY=VALUE comma separated, that policies select it by; "
        "kubernetes.io/hostname is the node's name unless it is given here.",
    )
    conntrack_gc_seconds: float = setting(
        30.0, help="Seconds between two rounds of conntrack garbage collection.", minimum=0.1
    )
    refresh_seconds: float = setting(
        300.0,
        help="Seconds between two looks at everything that the kernel holds for the node, in which what "
        "differs from the loader's records is repaired. 0: never.",
        minimum=0,
    )
    map_sizes: tuple[str, ...] = setting(
        (),
        help="Most entries that maps are to hold, MAP=ENTRIES comma separated, instead of what the programs "
        "declare. What a map holds is carried over. `fimbria map resize` overrides it.",
    )
    flow_buffer: int = setting(
        4096, help="How many of the newest flows are remembered.", minimum=1, maximum=1_000_000
    )
    start_seconds: float = setting(
        10.0,
        help="How long a node that is new to the cluster waits for ipam at start before it serves without.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        """Raises SettingsError for what one value alone shows to be wrong."""
        for name, check in (
            ("pod_cidr", pod_cidrs),
            ("devices", devices),
            ("masquerade_exclude", cidrs),
            ("masquerade_ports", port_range),
            ("host_failsafe_ports", failsafe_ports),
            ("node_labels", node_labels),
            ("map_sizes", map_sizes),
        ):
            check(f"FIMBRIA_{name.upper()}", getattr(self, name))
        if self.node_ipv6:
            _canonical_ipv6(self.node_ipv6)

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        """``pod_cidr`` in canonical text."""
        return pod_cidrs("FIMBRIA_POD_CIDR", self.pod_cidr)

    @property
    def masquerade_range(self) -> tuple[int, int]:
        """First and last of ``masquerade_ports``."""
        return port_range("FIMBRIA_MASQUERADE_PORTS", self.masquerade_ports)

    @property
    def failsafe_ports(self) -> tuple[FailsafePort, ...]:
        """``host_failsafe_ports``, parsed."""
        return failsafe_ports("FIMBRIA_HOST_FAILSAFE_PORTS", self.host_failsafe_ports)

    @property
    def host_labels(self) -> tuple[str, ...]:
        """``node_labels`` as the services write labels, and the node's name among them."""
        found = {label.key: label for label in node_labels("FIMBRIA_NODE_LABELS", self.node_labels)}
        with suppress(InvalidArgument):
            # A name that cannot be a label's value is none.
            check_value(self.node_name)
            found.setdefault(HOSTNAME_KEY, Label(SOURCE_K8S, HOSTNAME_KEY, self.node_name))
        return LabelSet(found.values())

    @property
    def map_max_entries(self) -> dict[str, int]:
        """``map_sizes``, parsed."""
        return map_sizes("FIMBRIA_MAP_SIZES", self.map_sizes)

    @property
    def pins(self) -> str:
        """The directory of the node's pins."""
        return self.pin_dir or f"{self.bpffs}/fimbria/{self.node_name}"

    def underlay_ipv4(self) -> str:
        """The node's underlay address. Raises InvalidArgument (NODE_ADDRESS_INVALID) when there is none."""
        address = self.node_ipv4 or _default_source()
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            shown = f"is {address!r}" if address else "is not set, and there is no default route"
            raise InvalidArgument(
                f"FIMBRIA_NODE_IPV4 {shown}; expected an IPv4 address of this node",
                reason="NODE_ADDRESS_INVALID",
                metadata={"variable": "FIMBRIA_NODE_IPV4", "value": address},
            ) from None
        return address

    def underlay_ipv6(self) -> str:
        """The node's IPv6 underlay address in canonical text, or empty."""
        return _canonical_ipv6(self.node_ipv6) if self.node_ipv6 else _default_source_ipv6()


def _canonical_ipv6(text: str) -> str:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        address = None
    if address is None or address.scope_id or address.is_link_local or address.is_multicast:
        raise SettingsError(
            "FIMBRIA_NODE_IPV6", text, "an IPv6 address of this node that is not link-local, or nothing"
        )
    return str(address)


def _default_source() -> str:
    # Connecting a datagram socket sends nothing; it only asks the routing table. The address is from
    # TEST-NET-1.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def _default_source_ipv6() -> str:
    # linux/in6.h. An address that the system makes for privacy is another one tomorrow.
    addr_preferences, prefer_public = 72, struct.pack("=I", 2)
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, addr_preferences, prefer_public)
            # Documentation's own (RFC 3849), as TEST-NET-1 above.
            probe.connect(("2001:db8::1", 9))
            address = ipaddress.IPv6Address(probe.getsockname()[0])
    except (OSError, ValueError):
        return ""
    return "" if address.is_link_local or address.is_loopback else str(address)
