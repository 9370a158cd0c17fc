"""A cluster for the command line's tests: what its services and loaders answer, kept in dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from fimbria.loader.v1 import loader_pb2, loader_pb2_grpc

from services.chassis.errors import Aborted, FailedPrecondition, FimbriaError, NotFound, rich_status
from services.ipam.check import HeldAddress, compare
from services.ipam.check_api import endpoints_of, finding_message

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND


def refuse(context: grpc.ServicerContext, error: FimbriaError) -> NoReturn:
    status = rich_status(error)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(error.code, status.message)
    raise AssertionError


@dataclass
class Held:
    """What an owner holds."""

    addresses: tuple[str, ...]
    created_ns: int = NOW - 3600 * SECOND
    pool: str = "default"

    def message(self, node: str, owner: str) -> ipam_pb2.Address:
        shown = ipam_pb2.Address(node=node, owner=owner, pool=self.pool)
        for address in self.addresses:
            if ":" in address:
                shown.ipv6 = address
            else:
                shown.address = address
        shown.create_time.FromNanoseconds(self.created_ns)
        return shown


class Ipam(
    ipam_pb2_grpc.NodeServiceServicer,
    ipam_pb2_grpc.PoolServiceServicer,
    ipam_pb2_grpc.AddressServiceServicer,
):
    """Nodes, pools and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, ipam_pb2.Node] = {}
        self.pools: dict[str, ipam_pb2.Pool] = {}
        self.held: dict[tuple[str, str], Held] = {}
        self.on_hold: list[ipam_pb2.Address] = []
        self.released: list[str] = []
        self.before_release: Callable[[], None] = lambda: None
        self.after_check: Callable[[], None] = lambda: None
        self.others_change_first = 0

    def register(self, *names: str) -> None:
        for number, name in enumerate(names, 1):
            node = ipam_pb2.Node(name=name, ipv4=f"172.31.0.{number}", pool="default")
            node.pod_cidrs.append(f"10.244.{number}.0/24")
            node.cidrs.add(cidr=f"10.244.{number}.0/24", pool="default")
            self.nodes[name] = node

    def GetNode(self, request: ipam_pb2.GetNodeRequest, context: grpc.ServicerContext) -> ipam_pb2.Node:
        if request.name not in self.nodes:
            refuse(context, NotFound("no such node", reason="NODE_NOT_FOUND"))
        return self.nodes[request.name]

    def ListNodes(
        self, request: ipam_pb2.ListNodesRequest, context: grpc.ServicerContext
    ) -> ipam_pb2.ListNodesResponse:
        return ipam_pb2.ListNodesResponse(nodes=self.nodes.values())

    def DeleteNode(
        self, request: ipam_pb2.DeleteNodeRequest, context: grpc.ServicerContext
    ) -> ipam_pb2.DeleteNodeResponse:
        holding = [key for key in self.held if key[0] == request.name]
        if holding and not request.force:
            refuse(context, FailedPrecondition("addresses are held", reason="NODE_IN_USE"))
        for key in holding:
            del self.held[key]
        self.nodes.pop(request.name, None)
        return ipam_pb2.DeleteNodeResponse()

    def GetPool(self, request: ipam_pb2.GetPoolRequest, context: grpc.ServicerContext) -> ipam_pb2.Pool:
        if request.name not in self.pools:
            refuse(context, NotFound(f"pool {request.name!r} does not exist", reason="POOL_NOT_FOUND"))
        return self.pools[request.name]

    def ListPools(
        self, request: ipam_pb2.ListPoolsRequest, context: grpc.ServicerContext
    ) -> ipam_pb2.ListPoolsResponse:
        listed = ipam_pb2.ListPoolsResponse(pools=self.pools.values())
        for pool in listed.pools:
            pool.ClearField("usage")
        return listed

    def CreatePool(self, request: ipam_pb2.CreatePoolRequest, context: grpc.ServicerContext) -> ipam_pb2.Pool:
        made = ipam_pb2.Pool(
            name=request.name,
            cidrs=request.cidrs,
            node_mask_size=request.node_mask_size,
            node_mask_size_ipv6=request.node_mask_size_ipv6,
            excluded=request.excluded,
            revision=1,
        )
        if request.HasField("pod_selector"):
            made.pod_selector.CopyFrom(request.pod_selector)
        if request.HasField("namespace_selector"):
            made.namespace_selector.CopyFrom(request.namespace_selector)
        self.pools[request.name] = made
        return made

    def UpdatePool(self, request: ipam_pb2.UpdatePoolRequest, context: grpc.ServicerContext) -> ipam_pb2.Pool:
        pool = self.pools[request.name]
        if self.others_change_first:
            self.others_change_first -= 1
            pool.revision += 1
            pool.cidrs.append(f"10.{pool.revision}.0.0/16")
        if request.expected_revision != pool.revision:
            refuse(context, Aborted("somebody else changed it", reason="POOL_CHANGED"))
        for cidr in pool.cidrs:
            if cidr not in request.cidrs:
                pool.draining.add(cidr=cidr, node_cidrs=1, addresses=2)
        pool.cidrs[:] = request.cidrs
        pool.excluded[:] = request.excluded
        for name in ("pod_selector", "namespace_selector"):
            pool.ClearField(name)
            if request.HasField(name):
                getattr(pool, name).CopyFrom(getattr(request, name))
        pool.revision += 1
        return pool

    def DeletePool(
        self, request: ipam_pb2.DeletePoolRequest, context: grpc.ServicerContext
    ) -> ipam_pb2.DeletePoolResponse:
        pool = self.pools.get(request.name)
        if pool is not None and pool.node_cidrs_used:
            refuse(context, FailedPrecondition("nodes hold CIDRs of it", reason="POOL_IN_USE"))
        self.pools.pop(request.name, None)
        return ipam_pb2.DeletePoolResponse()

    def ListAddresses(
        self, request: ipam_pb2.ListAddressesRequest, context: grpc.ServicerContext
    ) -> ipam_pb2.ListAddressesResponse:
        if request.on_hold:
            return ipam_pb2.ListAddressesResponse(
                addresses=[one for one in self.on_hold if request.node in ("", one.node)]
            )
        return ipam_pb2.ListAddressesResponse(
            addresses=[
                held.message(node, owner)
                for (node, owner), held in self.held.items()
                if request.node in ("", node) and request.owner in ("", owner)
            ]
        )

    def CheckAddresses(
        self, request: ipam_pb2.CheckAddressesRequest, context: grpc.ServicerContext
    ) -> ipam_pb2.CheckAddressesResponse:
        if request.node not in self.nodes:
            refuse(context, NotFound("no such node", reason="NODE_NOT_FOUND"))
        held = {
            packed: HeldAddress(packed, node, owner, each.created_ns)
            for (node, owner), each in self.held.items()
            for packed in (ip_address(address).packed for address in each.addresses)
        }
        found = compare(
            request.node,
            held,
            endpoints_of(request),
            now_ns=NOW,
            min_age_ns=request.min_age_seconds * SECOND,
        )
        self.after_check()
        return ipam_pb2.CheckAddressesResponse(
            findings=map(finding_message, found), checked=sum(node == request.node for node, _ in self.held)
        )

    def ReleaseBatch(
        self, request: ipam_pb2.ReleaseBatchRequest, context: grpc.ServicerContext
    ) -> ipam_pb2.ReleaseBatchResponse:
        self.before_release()
        answer = ipam_pb2.ReleaseBatchResponse()
        for holding in request.holdings:
            held = self.held.get((request.node, holding.owner))
            if held is None:
                answer.absent += 1
            elif held.created_ns != holding.if_create_time.ToNanoseconds():
                answer.changed += 1
            else:
                del self.held[request.node, holding.owner]
                self.released.append(holding.owner)
                answer.released += 1
        return answer


class Identity(identity_pb2_grpc.IdentityServiceServicer, identity_pb2_grpc.IpCacheServiceServicer):
    """Identities, who uses them, the filter, and the ipcache."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: dict[str, int] = {}
        self.entries: list[identity_pb2.IpCacheEntry] = []
        self.filter = identity_pb2.LabelFilter(patterns=["!k8s:hash$"], revision=3)
        self.change = identity_pb2.SetLabelFilterResponse()
        self.filter_calls: list[bool] = []
        self.others_set_it_first = False
        self.status = identity_pb2.IdentityStatus()

    def ListHolders(
        self, request: identity_pb2.ListHoldersRequest, context: grpc.ServicerContext
    ) -> identity_pb2.ListHoldersResponse:
        answer = identity_pb2.ListHoldersResponse()
        for name, count in self.holders.items():
            answer.holders.add(name=name, identities=count).report_time.FromNanoseconds(NOW)
        return answer

    def EndUse(
        self, request: identity_pb2.EndUseRequest, context: grpc.ServicerContext
    ) -> identity_pb2.EndUseResponse:
        self.holders.pop(request.holder, None)
        return identity_pb2.EndUseResponse()

    def GetLabelFilter(
        self, request: identity_pb2.GetLabelFilterRequest, context: grpc.ServicerContext
    ) -> identity_pb2.LabelFilter:
        return self.filter

    def SetLabelFilter(
        self, request: identity_pb2.SetLabelFilterRequest, context: grpc.ServicerContext
    ) -> identity_pb2.SetLabelFilterResponse:
        self.filter_calls.append(request.validate_only)
        self.filter.revision += self.others_set_it_first and not request.validate_only
        if request.expected_revision != self.filter.revision:
            refuse(context, Aborted("the filter is another one by now", reason="FILTER_CHANGED"))
        answer = identity_pb2.SetLabelFilterResponse()
        answer.CopyFrom(self.change)
        answer.filter.patterns[:] = request.patterns or ["!k8s:default$"]
        answer.filter.revision = self.filter.revision
        if not request.validate_only:
            answer.filter.revision += 1
            self.filter = answer.filter
        return answer

    def GetIdentityStatus(
        self, request: identity_pb2.GetIdentityStatusRequest, context: grpc.ServicerContext
    ) -> identity_pb2.IdentityStatus:
        return self.status

    def ListIpCacheEntries(
        self, request: identity_pb2.ListIpCacheEntriesRequest, context: grpc.ServicerContext
    ) -> identity_pb2.ListIpCacheEntriesResponse:
        return identity_pb2.ListIpCacheEntriesResponse(
            entries=[entry for entry in self.entries if request.node in ("", entry.node)]
        )

    def Publish(
        self, request: identity_pb2.PublishRequest, context: grpc.ServicerContext
    ) -> identity_pb2.PublishResponse:
        assert request.replace_node and not request.entries
        self.entries = [entry for entry in self.entries if entry.node != request.node]
        return identity_pb2.PublishResponse(revision=9)


class Loader(loader_pb2_grpc.EndpointServiceServicer, loader_pb2_grpc.DatapathServiceServicer):
    """A node's endpoints: their addresses by owner."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self.node = node
        self.problems: list[str] = []
        self.endpoints: dict[str, tuple[str, ...]] = {}

    def GetStatus(
        self, request: loader_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> loader_pb2.DatapathStatus:
        return loader_pb2.DatapathStatus(
            node=self.node, problems=self.problems, endpoints=len(self.endpoints)
        )

    def ListEndpoints(
        self, request: loader_pb2.ListEndpointsRequest, context: grpc.ServicerContext
    ) -> loader_pb2.ListEndpointsResponse:
        # A page holds one, so that whoever forgets the rest is found out.
        numbered = list(self.endpoints.items())
        start = int(request.page_token or 0)
        answer = loader_pb2.ListEndpointsResponse()
        for owner, addresses in numbered[start : start + 1]:
            container, _, ifname = owner.partition("/")
            shown = answer.endpoints.add(id=start + 1, container_id=container, ifname=ifname, node=self.node)
            for address in addresses:
                if ":" in address:
                    shown.ipv6 = address
                else:
                    shown.ipv4 = address
        if start + 1 < len(numbered):
            answer.next_page_token = str(start + 1)
        return answer


@dataclass
class FakeCluster:
    """Two services, and a loader for each of two nodes."""

    directory: Path
    ipam: Ipam = field(default_factory=Ipam)
    identity: Identity = field(default_factory=Identity)
    loaders: dict[str, Loader] = field(default_factory=dict)
    servers: list[grpc.Server] = field(default_factory=list)

    def serve(self) -> dict[str, str]:
        """Starts all; the environment that names them."""
        self.ipam.register("node-1", "node-2")
        targets = {"FIMBRIA_IPAM_TARGET": self._listen("ipam"), "FIMBRIA_IDENTITY_TARGET": self._listen("id")}
        ipam_server, identity_server = self.servers
        ipam_pb2_grpc.add_NodeServiceServicer_to_server(self.ipam, ipam_server)
        ipam_pb2_grpc.add_PoolServiceServicer_to_server(self.ipam, ipam_server)
        ipam_pb2_grpc.add_AddressServiceServicer_to_server(self.ipam, ipam_server)
        identity_pb2_grpc.add_IdentityServiceServicer_to_server(self.identity, identity_server)
        identity_pb2_grpc.add_IpCacheServiceServicer_to_server(self.identity, identity_server)
        loaders = []
        for node in ("node-1", "node-2"):
            loader = Loader(node)  # type: ignore[abstract]
            self.loaders[node] = loader
            loaders.append(f"{node}={self._listen(node)}")
            loader_pb2_grpc.add_EndpointServiceServicer_to_server(loader, self.servers[-1])
            loader_pb2_grpc.add_DatapathServiceServicer_to_server(loader, self.servers[-1])
        for server in self.servers:
            server.start()
        return {**targets, "FIMBRIA_LOADER_TARGETS": ",".join(loaders)}

    def kill(self, node: str) -> None:
        """The node's loader does not answer any more."""
        self.servers[2 + list(self.loaders).index(node)].stop(None).wait()

    def stop(self) -> None:
        for server in self.servers:
            server.stop(None)

    def pod(self, node: str, owner: str, *addresses: str) -> None:
        """An endpoint that is as it should be."""
        self.ipam.held[node, owner] = Held(addresses)
        self.loaders[node].endpoints[owner] = addresses

    def leak(self, node: str, owner: str, *addresses: str, age: int = 3600) -> None:
        """Addresses that are held for no endpoint."""
        self.ipam.held[node, owner] = Held(addresses, NOW - age * SECOND)

    def _listen(self, name: str) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        target = f"unix:{self.directory}/{name}.sock"
        server.add_insecure_port(target)
        self.servers.append(server)
        return target
