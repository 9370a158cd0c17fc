"""What the loader process can be told."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from services.chassis.errors import InvalidArgument
from services.chassis.settings import CommonSettings, setting

_SOURCES = str(Path(__file__).resolve().parent.parent.parent / "bpf")


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
    pool: str = setting("default", help="IPAM pool that the node's pod CIDR comes from.")
    ipam_target: str = setting("ipv4:127.0.0.1:4001", help="gRPC target of the ipam service.")
    identity_target: str = setting("ipv4:127.0.0.1:4002", help="gRPC target of the identity service.")
    policy_target: str = setting("ipv4:127.0.0.1:4003", help="gRPC target of the policy service.")
    state_dir: str = setting("/var/lib/fimbria/loader", help="Directory of the node's records.")
    bpffs: str = setting("/sys/fs/bpf", help="Where the BPF file system is mounted.")
    pin_dir: str = setting(
        "", help="Directory of the node's pins on the BPF file system. Empty: BPFFS/fimbria/NODE_NAME."
    )
    source_dir: str = setting(_SOURCES, help="Directory of the datapath's C sources.")
    cache_dir: str = setting("/var/cache/fimbria/objects", help="Directory of compiled BPF objects.")
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
    conntrack_gc_seconds: float = setting(
        30.0, help="Seconds between two rounds of conntrack garbage collection.", minimum=0.1
    )
    flow_buffer: int = setting(
        4096, help="How many of the newest flows are remembered.", minimum=1, maximum=1_000_000
    )
    start_seconds: float = setting(
        10.0,
        help="How long a node that is new to the cluster waits for ipam at start before it serves without.",
        minimum=0,
    )

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


def _default_source() -> str:
    # Connecting a datagram socket sends nothing; it only asks the routing table. The address is from
    # TEST-NET-1.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])
