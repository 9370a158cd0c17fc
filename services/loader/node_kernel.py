"""The node's kernel as its settings, its registration and its devices have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.chassis.errors import FailedPrecondition
from services.loader.bpf.attach import Anchor, Mode
from services.loader.bpf.datapath import KernelDatapath, NodeConfig
from services.loader.bpf.map_sizes import MapSizes
from services.loader.bpf.switching import AttachOptions
from services.loader.endpoints.records import NodeRecord
from services.loader.host_policy import failsafe_ports
from services.loader.interfaces import DatapathError
from services.loader.kernel import Kernel, NodeRows, PolicyMode
from services.loader.kernel_rows import refusals
from services.loader.load_trace import traced_open
from services.loader.netlink.node import NodeDevices
from services.loader.settings import LoaderSettings
from services.loader.settings_types import cidrs


@dataclass(slots=True)
class NodePlace:
    """The node as it is registered and its devices as they are, now. ``configured`` is the registration that
    the programs were loaded with.
    """

    devices: NodeDevices
    record: NodeRecord
    configured: NodeRecord | None = None

    @property
    def programs_differ(self) -> bool:
        """Whether the programs know the node by other addresses than it has by now."""
        return self.configured is not None and _addresses(self.configured) != _addresses(self.record)


def node_indexes(devices: NodeDevices) -> frozenset[int]:
    """Interface indexes of the node's own devices."""
    own = {devices.host_ifindex, devices.net_ifindex, devices.vxlan_ifindex}
    return frozenset(own | {ifindex for _, ifindex in devices.nics}) - {0}


def _addresses(record: NodeRecord) -> tuple[str, ...]:
    return record.ipv4, record.ipv6, record.router_ipv4, record.router_ipv6


def node_config(settings: LoaderSettings, record: NodeRecord, devices: NodeDevices) -> NodeConfig:
    """What the node's programs are configured with."""
    return NodeConfig(
        node_name=record.name,
        node_ipv4=record.ipv4,
        router_ipv4=record.router_ipv4,
        pod_cidrs=record.pod_cidrs,
        host_ifindex=devices.host_ifindex,
        net_ifindex=devices.net_ifindex,
        vxlan_ifindex=devices.vxlan_ifindex,
        mtu=devices.mtu,
        node_ipv6=record.ipv6,
        router_ipv6=record.router_ipv6,
        route_mtu=devices.route_mtu,
        vxlan_port=settings.vxlan_port,
        endpoint_routes=settings.endpoint_routes,
        host_routing=settings.host_routing,
        masquerade=settings.masquerade,
        masquerade_ports=settings.masquerade_range,
    )


def node_rows(settings: LoaderSettings, devices: NodeDevices) -> NodeRows:
    """What of the node itself is in the maps."""
    return NodeRows(
        devices.host_mac,
        devices.net_mac,
        failsafe_ports(settings),
        cidrs("FIMBRIA_MASQUERADE_EXCLUDE", settings.masquerade_exclude),
    )


def open_kernel(settings: LoaderSettings, place: NodePlace) -> Kernel:
    """Compiles, loads and attaches to the node's devices what is not there yet. What the kernel does later,
    reloading and resizing, goes by what ``place`` says then. Raises FailedPrecondition.
    """

    sizes = MapSizes(settings.state_dir, settings.map_max_entries)

    def reopen(*, rebuild: bool, map_sizes: Mapping[str, int]) -> KernelDatapath:
        record = place.record
        config = node_config(settings, record, place.devices)
        opened = traced_open(
            lambda: KernelDatapath.open(
                replace(config, map_sizes=map_sizes),
                pin_dir=settings.pins,
                source_dir=settings.source_dir,
                cache_dir=settings.cache_dir,
                devices=place.devices.nics,
                attach=AttachOptions(
                    Mode(settings.attach_mode),
                    Mode(settings.endpoint_attach_mode),
                    Anchor(settings.tcx_anchor),
                ),
                prebuilt_dir=settings.prebuilt_dir,
                state_dir=settings.state_dir,
                rebuild=rebuild,
            )
        )
        place.configured = record
        return opened

    try:
        with refusals():
            datapath = reopen(rebuild=False, map_sizes=sizes.merged())
    except DatapathError as problem:
        raise FailedPrecondition(
            str(problem), reason="DATAPATH_UNAVAILABLE", metadata=problem.metadata
        ) from problem
    mode = PolicyMode(settings.policy_enforcement, settings.policy_audit)
    kernel = Kernel(datapath, reopen, mode, sizes)
    try:
        kernel.configure_node(node_rows(settings, place.devices))
    except DatapathError as problem:
        kernel.close()
        raise FailedPrecondition(str(problem), reason="DATAPATH_UNAVAILABLE") from problem
    return kernel
