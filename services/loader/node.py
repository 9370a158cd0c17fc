"""A node in service: everything that runs once the node has its pod CIDR, put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from fimbria.policy.v1 import policy_pb2_grpc

from services.chassis import names
from services.chassis.errors import FailedPrecondition, FimbriaError
from services.chassis.logs import get_logger
from services.chassis.telemetry import span
from services.loader.clients import IdentityServiceClient, IpamClient
from services.loader.devices import NetlinkDevices
from services.loader.endpoints.cni_calls import CniCalls
from services.loader.endpoints.creation import EndpointMaker
from services.loader.endpoints.device_watch import DeviceWatch
from services.loader.endpoints.endpoint import Phase, State
from services.loader.endpoints.identity_use import IdentityUse
from services.loader.endpoints.manager import EndpointManager
from services.loader.endpoints.orphans import OrphanFinder
from services.loader.endpoints.publication import Publication
from services.loader.endpoints.records import NodeRecord, StateDirectory
from services.loader.endpoints.refresh import Refresh
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.endpoints.releases import Releases
from services.loader.endpoints.restore import Restoration, boot_id
from services.loader.flows.log import FlowLog
from services.loader.flows.reader import FlowReader, NodeNames
from services.loader.gc import collect_conntrack
from services.loader.host_addresses import HostAddresses
from services.loader.host_policy import HostPolicy
from services.loader.interfaces import DatapathError
from services.loader.ipcache.identity_labels import IdentityLabels
from services.loader.ipcache.nodes import Node, NodesSync
from services.loader.ipcache.sync import IpcacheSync
from services.loader.kernel import Kernel
from services.loader.netlink.node import NodeDevices, NodeNetworkSettings
from services.loader.node_devices import NodeDeviceKeeper, appearance
from services.loader.node_kernel import NodePlace, node_indexes, node_rows, open_kernel
from services.loader.policy.cluster_barrier import ClusterBarrier
from services.loader.policy.prefixes import PolicyPrefixes
from services.loader.policy.subjects import SubjectTable
from services.loader.policy.sync import PolicySync
from services.loader.settings import LoaderSettings
from services.loader.streams.backoff import Backoff
from services.loader.streams.watch import WatchState
from services.loader.streams.watermark import Watermark

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Channels:
    """Channels to the three services."""

    ipam: grpc.aio.Channel
    identity: grpc.aio.Channel
    policy: grpc.aio.Channel


@dataclass(slots=True)
class NodeRuntime:
    """What a running node is made of."""

    pin_directory: str
    kernel: Kernel
    links: NetlinkDevices
    place: NodePlace
    registry: EndpointRegistry
    releases: Releases
    subjects: SubjectTable
    policy: PolicySync
    ipcache: IpcacheSync
    nodes: NodesSync
    addresses: HostAddresses
    manager: EndpointManager
    watch: DeviceWatch
    refresh: Refresh
    keeper: NodeDeviceKeeper
    orphans: OrphanFinder
    state: StateDirectory
    cni: CniCalls
    maker: EndpointMaker
    publication: Publication
    uses: IdentityUse
    labels: IdentityLabels
    flows: FlowLog
    reader: FlowReader
    settings: LoaderSettings
    start_time: float = field(default_factory=time.time)

    @property
    def record(self) -> NodeRecord:
        """The node as it is registered now."""
        return self.place.record

    @property
    def devices(self) -> NodeDevices:
        """The node's own devices as they are now."""
        return self.place.devices

    def adopt(self, registered: NodeRecord) -> None:
        """Follows a registration that differs from the one that the node started with."""
        self.nodes.adopt(_own(registered))

    def follow(self, own: Node) -> None:
        """The node has these pod CIDRs and routers now; its routes are made by who says so."""
        changed = replace(
            self.place.record,
            pod_cidrs=own.pod_cidrs,
            router_ipv4=own.router_ipv4,
            router_ipv6=own.router_ipv6,
        )
        self.place.record = changed
        self.addresses.follow(own.pod_cidrs)
        try:
            self.state.save_node(changed)
        except OSError as problem:
            # The next start registers again; it needs the record only while IPAM is away.
            _log.error("node.record_not_saved", error=str(problem))
        if self.place.programs_differ:
            _log.warning("node.routers_changed", ipv4=own.router_ipv4, ipv6=own.router_ipv6)
            self.keeper.ask(force=True)

    def background(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """What has to run beside the server, with names."""
        return [
            ("policy", self.policy.run()),
            ("ipcache", self.ipcache.run()),
            ("nodes", self.nodes.run()),
            ("addresses", self.addresses.run()),
            ("releases", self.releases.run()),
            ("node-devices", self.keeper.run()),
            ("endpoint-devices", self.watch.run()),
            ("refresh", self.refresh.run(self.settings.refresh_seconds)),
            ("leftovers", self.give_back_leftovers()),
            ("publication", self.publish_all()),
            ("identity-use", self.uses.run(self.manager.refresh)),
            (
                "conntrack-gc",
                collect_conntrack(
                    self.kernel.collect_connections, seconds=self.settings.conntrack_gc_seconds
                ),
            ),
        ]

    async def publish_all(self) -> None:
        """Tells the cluster of everything that this node has, and of nothing else: at start, and when
        telling of a change has failed.
        """
        backoff = Backoff()
        while True:
            await self.publication.outdated.wait()
            try:
                ready = [endpoint.record for endpoint in self.registry]
                await self.uses.resolve_again(ready, self.manager.refresh)
                records, revision = await self.publication.publish_all()
            except FimbriaError as problem:
                _log.warning("publication.postponed", reason=problem.reason, error=problem.message)
                await asyncio.sleep(backoff.next())
            else:
                backoff.reset()
                for record in records:
                    self.manager.published(record.id, revision)
                _log.info("publication.done", endpoints=len(records))

    async def give_back_leftovers(self) -> None:
        """Gives back, once after a start, what the services hold for endpoints that are not here."""
        backoff = Backoff(first=1.0, most=60.0)
        while True:
            try:
                found, skipped = await self.orphans.collect(remove=True)
            except (FimbriaError, DatapathError, OSError) as problem:
                skipped = str(problem)
            else:
                if not skipped or self.state.damaged:
                    _log.info("leftovers.given_back", orphans=len(found), skipped=skipped)
                    return
            await asyncio.sleep(backoff.next())

    async def repair_devices(self) -> None:
        """Makes the node's own devices again or corrects them, and brings the datapath along. Raises
        FimbriaError, DatapathError.
        """
        devices = await self.links.ensure()
        if self.place.programs_differ:
            # Routes from a router address that is gone have gone with it.
            records = [each.record for each in self.registry if each.record.phase is Phase.READY]
            await self.links.sync_endpoint_routes(records)
        unhooked = await asyncio.to_thread(self.kernel.node_unhooked)
        if devices != self.place.devices or unhooked or self.place.programs_differ:
            _log.warning("node.devices_changed", nics=[name for name, _ in devices.nics])
            self.place.devices = devices
            await asyncio.to_thread(self.kernel.reload, rebuild=False)
        self.kernel.configure_node(node_rows(self.settings, devices))
        self.nodes.again()
        await self.watch.rehook()

    @property
    def synchronized(self) -> bool:
        """Whether every watch has brought its first full state into force."""
        return all(state.synchronized for state in self.watches)

    @property
    def watches(self) -> tuple[WatchState, WatchState, WatchState]:
        """How the watches of nodes, ipcache and policy are."""
        return self.nodes.state, self.ipcache.state, self.policy.state

    async def wait_synchronized(self) -> None:
        """Returns when :attr:`synchronized`."""
        for state in self.watches:
            await state.ready.wait()

    def problems(self) -> list[str]:
        """What is wrong with the node, in words."""
        found = [each for each in (self.keeper.problem, self.nodes.problem) if each]
        for state in self.watches:
            if state.error:
                found.append(f"the watch of {state.name}: {state.error}")
        if self.uses.problem:
            found.append(f"the report of identities in use: {self.uses.problem}")
        if self.policy.prefix_problem:
            found.append(f"prefixes of policies: {self.policy.prefix_problem}")
        degraded = [each.record.id for each in self.registry if each.status.state is State.DEGRADED]
        if degraded:
            shown = ", ".join(map(str, degraded[:10])) + (", …" if len(degraded) > 10 else "")
            found.append(f"{len(degraded)} endpoints are degraded: {shown}")
        found += [f"{each.path} cannot be read: {each.problem}" for each in self.state.damaged]
        return found

    async def close(self) -> None:
        """Lets go of everything. What is pinned goes on forwarding."""
        self.reader.close()
        await self.manager.regenerator.close()
        await self.policy.close()
        await self.ipcache.close()
        await self.labels.close()
        self.links.close()
        self.kernel.close()


async def bring_up(
    settings: LoaderSettings, record: NodeRecord, state: StateDirectory, channels: Channels
) -> NodeRuntime:
    """Puts the node into service, or back into service. Raises FimbriaError with what to do about it."""
    attributes: dict[str, Any] = {names.NODE_NAME: record.name}
    with span(names.LOADER_RESTART, **attributes) as current:
        links = NetlinkDevices(
            NodeNetworkSettings(
                node_ipv4=IPv4Address(record.ipv4),
                router=IPv4Address(record.router_ipv4) if record.router_ipv4 else None,
                pod_cidrs=tuple(ip_network(cidr) for cidr in record.pod_cidrs),
                mtu=settings.mtu,
                vxlan_port=settings.vxlan_port,
                node_ipv6=IPv6Address(record.ipv6) if record.ipv6 else None,
                router6=IPv6Address(record.router_ipv6) if record.router_ipv6 else None,
                routing_mode=settings.routing_mode,
                devices=settings.devices,
            ),
            endpoint_routes=settings.endpoint_routes,
            endpoint_device=settings.endpoint_device,
        )
        devices = await links.ensure()
        place = NodePlace(devices, record)
        kernel = open_kernel(settings, place)
        runtime = _assemble(settings, record, state, channels, kernel, links, place)
        _start_host_policy(settings, kernel, runtime.subjects)
        restored = await Restoration(
            state=state,
            registry=runtime.registry,
            subjects=runtime.subjects,
            kernel=kernel,
            links=links,
            maker=runtime.maker,
            ipcache=runtime.ipcache,
            orphans=runtime.orphans,
            failed=runtime.manager.realization_failed,
        ).run(boot_id())
        for damaged in state.damaged:
            _log.error("state.damaged", path=str(damaged.path), error=damaged.problem)
        current.set_attribute(names.RESTORED_ENDPOINTS, restored.kept)
        _log.info(
            "node.ready",
            node=record.name,
            pod_cidrs=list(record.pod_cidrs),
            endpoints=restored.kept,
            removed=restored.removed,
            orphans=restored.orphans,
        )
        return runtime


def _start_host_policy(settings: LoaderSettings, kernel: Kernel, subjects: SubjectTable) -> None:
    # Where policies are enforced nowhere the node need not be asked either.
    enabled = settings.host_firewall and settings.policy_enforcement != "never"
    try:
        always = settings.policy_enforcement == "always"
        HostPolicy(kernel, subjects, settings.host_labels, enabled=enabled, always=always).start()
    except DatapathError as problem:
        raise FailedPrecondition(str(problem), reason="DATAPATH_UNAVAILABLE") from problem


def _assemble(
    settings: LoaderSettings,
    record: NodeRecord,
    state: StateDirectory,
    channels: Channels,
    kernel: Kernel,
    links: NetlinkDevices,
    place: NodePlace,
) -> NodeRuntime:
    ipam = IpamClient(channels.ipam, record.name, settings.ipam_target)
    identities = IdentityServiceClient(channels.identity, record.name, record.ipv4, settings.identity_target)
    heads = kernel.subjects()
    loop = asyncio.get_running_loop()
    # What a lost state directory has forgotten, the kernel may still remember.
    epochs = state.numbers("epochs", at_least=_above(head.epoch for head in heads.values()))
    rewritten = kernel.conform_subjects(epochs)
    if rewritten:
        _log.info(
            "policy.mode_changed",
            enforcement=settings.policy_enforcement,
            audit=settings.policy_audit,
            subjects=rewritten,
        )
    subjects = SubjectTable(
        kernel,
        instances=state.numbers("instances", at_least=_above(head.instance for head in heads.values())),
        epochs=epochs,
        numbers=state.numbers("subjects", at_least=_above(heads), ahead=64),
        later=loop.call_later,
    )
    registry = EndpointRegistry(state, record.name)
    publication = Publication(identities, registry)
    uses = IdentityUse(registry, identities)
    releases = Releases(state, ipam, publication)
    manager: EndpointManager | None = None

    def changed(subject: Any) -> None:
        if manager is not None:
            manager.subject_changed(subject)

    identity_revision = Watermark()
    ipcache_stub = identity_pb2_grpc.IpCacheServiceStub(channels.identity)
    ipcache = IpcacheSync(
        node=record.name,
        kernel=kernel,
        open_stream=lambda revision: ipcache_stub.WatchIpCache(
            identity_pb2.WatchIpCacheRequest(from_revision=revision)
        ),
        identity_revision=identity_revision,
        target=settings.identity_target,
        tunnel=settings.routing_mode == "tunnel",
        # What the node has published and resolved may be gone: it is told, and asked for, again.
        started_over=publication.outdated.set,
    )
    prefixes = PolicyPrefixes(kernel, ipcache)
    policy_stub = policy_pb2_grpc.PolicyServiceStub(channels.policy)
    policy = PolicySync(
        node=record.name,
        open_stream=lambda requests: policy_stub.Subscribe(requests),
        table=subjects,
        changed=changed,
        histories=registry.histories,
        target=settings.policy_target,
        prefixes=prefixes,
        identity_revision=identity_revision,
    )
    nodes_stub = ipam_pb2_grpc.NodeServiceStub(channels.ipam)
    runtime: NodeRuntime | None = None

    def own_changed(own: Node) -> None:
        if runtime is not None:
            runtime.follow(own)

    nodes = NodesSync(
        own=_own(record),
        open_stream=lambda revision: nodes_stub.WatchNodes(
            ipam_pb2.WatchNodesRequest(from_revision=revision)
        ),
        links=links,
        ipcache=ipcache,
        target=settings.ipam_target,
        tunnel=settings.routing_mode == "tunnel",
        get_own=ipam.node,
        own_changed=own_changed,
    )
    barrier = ClusterBarrier(policy_stub.ListEnforcement, settings.policy_target)
    maker = EndpointMaker(
        registry=registry,
        releases=releases,
        addresses=ipam,
        identities=identities,
        kernel=kernel,
        links=links,
        policy=policy,
        ipcache=ipcache,
        barrier=barrier,
        publication=publication,
        uses=uses,
        cover=nodes.cover,
    )
    manager = EndpointManager(
        node=record.name,
        registry=registry,
        releases=releases,
        maker=maker,
        subjects=subjects,
        identities=identities,
        kernel=kernel,
        links=links,
        policy=policy,
        ipcache=ipcache,
        barrier=barrier,
        publication=publication,
        uses=uses,
    )

    async def repair() -> None:
        if runtime is not None:
            await runtime.repair_devices()

    keeper = NodeDeviceKeeper(appearance, repair)
    watch = DeviceWatch(
        registry=registry,
        manager=manager,
        kernel=kernel,
        links=links,
        node_devices=lambda: node_indexes(place.devices),
        node_changed=keeper.ask,
    )
    refresh = Refresh(
        registry=registry,
        subjects=subjects,
        kernel=kernel,
        policy=policy,
        ipcache=ipcache,
        regenerator=manager.regenerator,
        devices=watch,
        node=lambda unhooked: keeper.ask(force=unhooked),
    )
    orphans = OrphanFinder(
        registry=registry,
        subjects=subjects,
        kernel=kernel,
        links=links,
        manager=manager,
        releases=releases,
        publication=publication,
        addresses=ipam,
        identities=identities,
        damaged=lambda: bool(state.damaged),
    )
    flows = FlowLog(NodeNames(registry, ipcache, policy, subjects), capacity=settings.flow_buffer)
    runtime = NodeRuntime(
        pin_directory=settings.pins,
        kernel=kernel,
        links=links,
        place=place,
        registry=registry,
        releases=releases,
        subjects=subjects,
        policy=policy,
        ipcache=ipcache,
        nodes=nodes,
        addresses=HostAddresses(ipcache, record.pod_cidrs),
        manager=manager,
        watch=watch,
        refresh=refresh,
        keeper=keeper,
        orphans=orphans,
        state=state,
        cni=CniCalls(record.name, manager, registry),
        maker=maker,
        publication=publication,
        uses=uses,
        labels=IdentityLabels(identities, prefixes.labels),
        flows=flows,
        reader=FlowReader(kernel, flows),
        settings=settings,
    )
    return runtime


def _own(record: NodeRecord) -> Node:
    return Node(
        record.name,
        record.ipv4,
        record.pod_cidrs,
        record.router_ipv4,
        record.ipv6,
        record.router_ipv6,
    )


def _above(numbers: Any) -> int:
    return max(numbers, default=0) + 1
