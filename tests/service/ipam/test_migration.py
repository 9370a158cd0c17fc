"""Stores of earlier schemas go on working: their pools, nodes and addresses are what they were."""

from __future__ import annotations

import shutil
import time
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import orjson
import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

import services.ipam.migrations
from services.chassis.channel import open_channel
from services.chassis.db import Database
from services.chassis.feed import Feed
from services.ipam.address_store import AddressStore
from services.ipam.node_rows import decode_node
from services.ipam.node_store import NodeStore
from tests.service.ipam.stores import World, pair, texts
from tests.service.processes import WATCH_SECONDS, start
from tests.service.watches import next_events

POOL = "--ipam-default-pool-cidr=10.244.0.0/16"
OWNERS = 5


def migrations_up_to(directory: Path, last: str) -> Path:
    """The migrations of a release of then: those up to `last`."""
    versions = Path(next(iter(services.ipam.migrations.__path__))) / "versions"
    (directory / "versions").mkdir(parents=True)
    for one in versions.glob("[0-9]*.py"):
        if one.name[:4] <= last:
            shutil.copy(one, directory / "versions")
    return directory


@pytest.fixture
async def old_store(tmp_path: Path) -> Path:
    """The directory of a store with the first schema: one pool, two nodes, addresses on one of them."""
    first = migrations_up_to(tmp_path / "old_migrations", "0001")
    async with await Database.open(f"sqlite:///{tmp_path}/ipam.db", first) as database:
        feed = Feed(database, "nodes")

        async def fill(connection: AsyncConnection) -> None:
            async def put(statement: str, **values: object) -> None:
                await connection.execute(text(statement), values)

            await put("INSERT INTO pools (name, node_mask_size, created_ns) VALUES ('default', 24, 1)")
            await put("INSERT INTO pool_cidrs (cidr, pool, position) VALUES ('10.244.0.0/16', 'default', 0)")
            for number in (0, 1):
                name, cidr = f"node-{number}", f"10.244.{number}.0/24"
                # The payload as it was written then.
                payload = (
                    f'{{"ipv4":"172.31.0.{number}","pool":"default","pod_cidrs":["{cidr}"],"created_ns":2}}'
                )
                revision = await feed.append(connection, name, payload.encode(), trace="")
                await put(
                    "INSERT INTO nodes (name, ipv4, pool, created_ns, revision)"
                    " VALUES (:name, :ipv4, 'default', 2, :revision)",
                    name=name,
                    ipv4=f"172.31.0.{number}",
                    revision=revision,
                )
                await put(
                    "INSERT INTO node_cidrs (cidr, node, pool, position, next_address)"
                    " VALUES (:cidr, :name, 'default', 0, :next)",
                    cidr=cidr,
                    name=name,
                    next=IPv4Address(f"10.244.{number}.{2 + OWNERS * (1 - number)}").packed,
                )
            for number in range(OWNERS):
                await put(
                    "INSERT INTO addresses (node, owner, family, address, cidr, created_ns)"
                    " VALUES ('node-0', :owner, 4, :address, '10.244.0.0/24', 3)",
                    owner=f"c{number}",
                    address=IPv4Address(f"10.244.0.{2 + number}").packed,
                )

        await database.write(fill)
    return tmp_path


async def test_a_store_of_ipv4_is_taken_over(old_store: Path) -> None:
    # The same default pool as ever: it is found, not made again.
    service = start("ipam", old_store, POOL)
    try:
        async with open_channel(service.target) as channel:
            nodes = ipam_pb2_grpc.NodeServiceStub(channel)
            pools = ipam_pb2_grpc.PoolServiceStub(channel)
            addresses = ipam_pb2_grpc.AddressServiceStub(channel)

            pool = await pools.GetPool(ipam_pb2.GetPoolRequest(name="default"))
            assert pool == ipam_pb2.Pool(
                name="default",
                cidrs=["10.244.0.0/16"],
                node_mask_size=24,
                node_cidrs_total=256,
                node_cidrs_used=2,
                usage=[
                    ipam_pb2.PoolUsage(
                        family="IPv4", node_cidrs_total=256, node_cidrs_used=2, capacity=506, held=OWNERS
                    )
                ],
                revision=1,
            )
            node = await nodes.GetNode(ipam_pb2.GetNodeRequest(name="node-0"))
            assert (list(node.pod_cidrs), node.router_ipv4) == (["10.244.0.0/24"], "10.244.0.1")
            assert (node.ipv6, node.router_ipv6) == ("", "")
            again = ipam_pb2.RegisterNodeRequest(name="node-0", ipv4="172.31.0.0")
            assert await nodes.RegisterNode(again) == node
            third = await nodes.RegisterNode(ipam_pb2.RegisterNodeRequest(name="node-2", ipv4="172.31.0.2"))
            assert list(third.pod_cidrs) == ["10.244.2.0/24"]

            # A watch from before the change reads the payloads of then.
            watch = nodes.WatchNodes(ipam_pb2.WatchNodesRequest(from_revision=1), timeout=WATCH_SECONDS)
            message = await next_events(watch)
            assert [event.node.name for event in message.events] == ["node-1", "node-2"]
            watch.cancel()

            listed = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest())
            assert [(one.owner, one.address) for one in listed.addresses] == [
                (f"c{number}", f"10.244.0.{2 + number}") for number in range(OWNERS)
            ]
            kept = await addresses.Allocate(ipam_pb2.AllocateRequest(node="node-0", owner="c3"))
            assert kept == listed.addresses[3]
            new = await addresses.Allocate(ipam_pb2.AllocateRequest(node="node-0", owner="new"))
            assert (new.address, new.ipv6) == (f"10.244.0.{2 + OWNERS}", "")
            released = await addresses.Release(ipam_pb2.ReleaseRequest(node="node-0", owner="c3"))
            assert released == ipam_pb2.ReleaseResponse(address=kept.address)

            # IPv6 comes to an old cluster in a pool of its own.
            await pools.CreatePool(
                ipam_pb2.CreatePoolRequest(
                    name="both", cidrs=["10.245.0.0/16", "fd00:10:245::/48"], node_mask_size=24
                )
            )
            fourth = await nodes.RegisterNode(
                ipam_pb2.RegisterNodeRequest(name="node-3", ipv4="172.31.0.3", pool="both")
            )
            assert list(fourth.pod_cidrs) == ["10.245.0.0/24", "fd00:10:245::/112"]
    finally:
        assert service.terminate() == 0


async def test_migrating_twice_changes_nothing(old_store: Path) -> None:
    found = []
    for _ in range(2):
        url = f"sqlite:///{old_store}/ipam.db"
        async with await Database.open(url, "services.ipam.migrations") as database:
            nodes = NodeStore(database, Feed(database, "nodes"), time.time_ns)
            addresses = AddressStore(database, Feed(database, "nodes"), time.time_ns)
            found.append(
                (
                    await nodes.list(after="", limit=None),
                    await addresses.list(node="", owner="", after=None, limit=100),
                )
            )
    assert found[0] == found[1]
    assert len(found[0][0][0]) == 2
    assert len(found[0][1]) == OWNERS


def test_a_payload_from_before_ipv6_is_read() -> None:
    payload = b'{"ipv4":"172.31.0.1","pool":"default","pod_cidrs":["10.244.0.0/24"],"created_ns":2}'
    node = decode_node("node-1", payload, 7)
    assert node.ipv6 is None
    assert node.pod_cidrs == (ip_network("10.244.0.0/24"),)
    assert (node.router(4), node.router(6)) == (IPv4Address("10.244.0.1"), None)
    both = decode_node("node-1", payload.replace(b'"pool"', b'"ipv6":"fd99::1","pool"'), 8)
    assert both.ipv6 == IPv6Address("fd99::1")


@pytest.fixture
async def second_store(tmp_path: Path) -> Path:
    """The directory of a store with the second schema: a dual-stack pool, a node, addresses on it."""
    second = migrations_up_to(tmp_path / "second_migrations", "0002")
    async with await Database.open(f"sqlite:///{tmp_path}/ipam.db", second) as database:
        feed = Feed(database, "nodes")

        async def fill(connection: AsyncConnection) -> None:
            async def put(statement: str, **values: object) -> None:
                await connection.execute(text(statement), values)

            await put(
                "INSERT INTO pools (name, node_mask_size, node_mask_size_ipv6, created_ns)"
                " VALUES ('default', 29, 125, 1)"
            )
            cidrs = ["10.244.0.0/29", "fd00::/125"]
            for at, cidr in enumerate(["10.244.0.0/28", "fd00::/120"]):
                await put(
                    "INSERT INTO pool_cidrs (cidr, pool, position) VALUES (:cidr, 'default', :at)",
                    cidr=cidr,
                    at=at,
                )
            # The payload as it was written then.
            payload = (
                b'{"ipv4":"172.31.0.1","ipv6":"fd99::1","pool":"default",'
                b'"pod_cidrs":["10.244.0.0/29","fd00::/125"],"created_ns":2}'
            )
            revision = await feed.append(connection, "n1", payload, trace="")
            await put(
                "INSERT INTO nodes (name, ipv4, pool, created_ns, revision, ipv6)"
                " VALUES ('n1', '172.31.0.1', 'default', 2, :revision, 'fd99::1')",
                revision=revision,
            )
            for at, cidr in enumerate(cidrs):
                network = ip_network(cidr)
                await put(
                    "INSERT INTO node_cidrs (cidr, node, pool, position, next_address, family)"
                    " VALUES (:cidr, 'n1', 'default', :at, :next, :family)",
                    cidr=cidr,
                    at=at,
                    next=network[4].packed,
                    family=network.version,
                )
                for number in range(2):
                    await put(
                        "INSERT INTO addresses (node, owner, family, address, cidr, created_ns)"
                        " VALUES ('n1', :owner, :family, :address, :cidr, 3)",
                        owner=f"c{number}",
                        family=network.version,
                        address=network[2 + number].packed,
                        cidr=cidr,
                    )

        await database.write(fill)
    return tmp_path


async def test_a_store_from_before_modes_learns_what_is_new(second_store: Path) -> None:
    async with World.open(f"sqlite:///{second_store}/ipam.db", hold_seconds=30) as world:
        pool = await world.pools.get("default")
        assert (pool.revision, pool.excluded, pool.draining) == (1, (), ())
        assert (pool.pod_selector, pool.namespace_selector) == (None, None)
        assert [(one.family, one.held, one.on_hold) for one in pool.usage] == [(4, 2, 0), (6, 2, 0)]
        node = await world.nodes.get("n1")
        assert (texts(node), node.cidrs[0].pool) == (["10.244.0.0/29", "fd00::/125"], "default")
        (event,) = await world.events(0)
        assert decode_node("n1", event.payload, event.revision) == node
        # Rotation goes on, and everything new works on what is old: holds, growth, draining, giving back.
        assert str(pair((await world.fill("n1", 1))[0]).ipv4) == "10.244.0.4"
        released = await world.addresses.release("n1", "c0")
        assert str(released.ipv4) == "10.244.0.2"
        await world.fill("n1", 3)
        assert texts(await world.nodes.get("n1")) == ["10.244.0.0/29", "fd00::/125", "10.244.0.8/29"]
        changed = await world.update("default", "10.9.0.0/28", "fd00::/120", excluded=["10.9.0.2"])
        assert [(str(one.network), one.node_cidrs, one.addresses) for one in changed.draining] == [
            ("10.244.0.0/28", 2, 6)
        ]
        assert changed.revision == 2


async def test_a_node_is_announced_so_that_the_version_before_understands_it(second_store: Path) -> None:
    async with World.open(f"sqlite:///{second_store}/ipam.db") as world:
        await world.update("default", "10.9.0.0/28", "fd00::/120")
        payload = orjson.loads((await world.events(1))[0].payload)
    assert payload.pop("cidrs") == [["10.244.0.0/29", "default", True], ["fd00::/125", "default", False]]
    assert payload == {
        "ipv4": "172.31.0.1",
        "ipv6": "fd99::1",
        "pool": "default",
        "pod_cidrs": ["10.244.0.0/29", "fd00::/125"],
        "created_ns": 2,
    }
