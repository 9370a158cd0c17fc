"""Two processes of a service over one store of each kind: what one has acknowledged holds at the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.channel import open_channel
from tests.postgres import STORES, fresh_database
from tests.service.processes import WATCH_SECONDS, ServiceProcess, start
from tests.service.watches import next_events


@dataclass
class Pair:
    """Two processes and a channel to each."""

    processes: list[ServiceProcess]
    channels: list[grpc.aio.Channel]


@contextmanager
def replicas(service: str, kind: str, directory: Path, *flags: str) -> Iterator[list[ServiceProcess]]:
    shared = nullcontext(f"sqlite:///{directory}/shared.db") if kind == "sqlite" else fresh_database(service)
    with shared as url:
        processes: list[ServiceProcess] = []
        try:
            for name in ("a", "b"):
                (directory / name).mkdir()
                processes.append(start(service, directory / name, f"--database-url={url}", *flags))
            yield processes
        finally:
            for process in processes:
                process.kill()


@pytest.fixture(params=STORES)
async def ipam(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    with replicas("ipam", request.param, tmp_path, "--ipam-default-pool-cidr=10.244.0.0/16") as processes:
        async with AsyncExitStack() as stack:
            yield Pair(
                processes, [await stack.enter_async_context(open_channel(p.target)) for p in processes]
            )


@pytest.fixture(params=STORES)
async def identity(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    with replicas("identity", request.param, tmp_path) as processes:
        async with AsyncExitStack() as stack:
            yield Pair(
                processes, [await stack.enter_async_context(open_channel(p.target)) for p in processes]
            )


async def test_addresses_and_nodes_have_one_owner_whichever_replica_is_asked(ipam: Pair) -> None:
    nodes = [ipam_pb2_grpc.NodeServiceStub(channel) for channel in ipam.channels]
    addresses = [ipam_pb2_grpc.AddressServiceStub(channel) for channel in ipam.channels]
    registered = await asyncio.gather(
        *(
            nodes[number % 2].RegisterNode(
                ipam_pb2.RegisterNodeRequest(name=f"n{number}", ipv4=f"172.31.0.{number}")
            )
            for number in range(1, 9)
        )
    )
    cidrs = [cidr for node in registered for cidr in node.pod_cidrs]
    assert len(set(cidrs)) == len(cidrs) == 8
    owners = [f"c{number}/eth0" for number in range(60)]
    granted = await asyncio.gather(
        *(
            stub.Allocate(ipam_pb2.AllocateRequest(node="n1", owner=owner))
            for owner in owners
            for stub in addresses
        )
    )
    # Both were asked for each owner, at once: it has one address, and no other owner has it.
    found = {owner: {granted[2 * at].address, granted[2 * at + 1].address} for at, owner in enumerate(owners)}
    assert all(len(each) == 1 for each in found.values())
    assert len(set.union(*found.values())) == len(owners)
    # A watch of the one learns what the other does, and goes on there when its replica is gone.
    watch = nodes[1].WatchNodes(
        ipam_pb2.WatchNodesRequest(from_revision=registered[-1].revision), timeout=WATCH_SECONDS
    )
    await nodes[0].RegisterNode(ipam_pb2.RegisterNodeRequest(name="later", ipv4="172.31.1.1"))
    message = await next_events(watch)
    while message.events[-1].node.name != "later":
        message = await next_events(watch)
    ipam.processes[1].kill()
    watch = nodes[0].WatchNodes(
        ipam_pb2.WatchNodesRequest(from_revision=message.revision), timeout=WATCH_SECONDS
    )
    await nodes[0].RegisterNode(ipam_pb2.RegisterNodeRequest(name="last", ipv4="172.31.1.2"))
    assert [event.node.name for event in (await next_events(watch)).events] == ["last"]
    again = await addresses[0].Allocate(ipam_pb2.AllocateRequest(node="n1", owner=owners[0]))
    assert {again.address} == found[owners[0]]


async def test_label_sets_have_one_number_and_entries_one_owner(identity: Pair) -> None:
    identities = [identity_pb2_grpc.IdentityServiceStub(channel) for channel in identity.channels]
    ipcaches = [identity_pb2_grpc.IpCacheServiceStub(channel) for channel in identity.channels]
    wanted = [labels(f"app{number}") for number in range(40)]
    resolved: Sequence[Any] = await asyncio.gather(
        *(stub.Resolve(identity_pb2.ResolveRequest(labels=each)) for each in wanted for stub in identities)
    )
    numbers = [{resolved[2 * at].id, resolved[2 * at + 1].id} for at in range(len(wanted))]
    assert all(len(each) == 1 for each in numbers)
    assert len(set.union(*numbers)) == len(wanted)

    def entry(host: int) -> identity_pb2.IpCacheEntry:
        return identity_pb2.IpCacheEntry(
            prefix=f"10.9.0.{host}/32", identity=resolved[0].id, tunnel_endpoint="172.31.0.1"
        )

    watch = ipcaches[1].WatchIpCache(identity_pb2.WatchIpCacheRequest(), timeout=WATCH_SECONDS)
    await asyncio.gather(
        *(
            ipcaches[host % 2].Publish(
                identity_pb2.PublishRequest(node=f"node{host % 2}", entries=[entry(host)])
            )
            for host in range(1, 41)
        )
    )
    seen: set[str] = set()
    while len(seen) < 40:
        seen |= {event.entry.prefix for event in (await next_events(watch)).events}
    # What another node owns by now is not withdrawn by the one that had it.
    await ipcaches[0].Publish(identity_pb2.PublishRequest(node="node1", entries=[entry(2)]))
    await ipcaches[1].Withdraw(
        identity_pb2.WithdrawRequest(node="node0", prefixes=["10.9.0.2/32", "10.9.0.4/32"])
    )
    left = await ipcaches[0].ListIpCacheEntries(identity_pb2.ListIpCacheEntriesRequest(page_size=1000))
    there = {each.prefix for each in left.entries}
    assert len(there) == 39 and "10.9.0.2/32" in there and "10.9.0.4/32" not in there


def labels(app: str) -> list[str]:
    return [f"k8s:app={app}", "k8s:io.kubernetes.pod.namespace=replicas"]
