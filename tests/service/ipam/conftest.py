"""One real ipam process over each kind of store for the tests of a worker; each test has a pool and names of
its own.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import grpc
import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.channel import open_channel
from tests.postgres import STORES, fresh_database, store_of
from tests.service.ipam.stores import empty
from tests.service.processes import ServiceProcess, start

_numbers = itertools.count(1)


@pytest.fixture(scope="session", params=STORES)
def ipam(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    with store_of("ipam", request.param) as flags:
        service = start(
            "ipam",
            tmp_path_factory.mktemp("ipam"),
            "--ipam-default-pool-cidr=10.244.0.0/16",
            "--log-level=debug",
            *flags,
        )
        yield service
        assert service.terminate() == 0


@pytest.fixture(scope="module", params=STORES)
def database(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The URL of a PostgreSQL database that the tests of a module use in turn; None for SQLite."""
    if request.param == "sqlite":
        yield None
        return
    with fresh_database("ipam") as url:
        yield url


@pytest.fixture
async def url(database: str | None, tmp_path: Path) -> str:
    """The URL of an empty store of either kind for stores in this process."""
    if database is None:
        return f"sqlite:///{tmp_path}/ipam.db"
    await empty(database)
    return database


@pytest.fixture
async def channel(ipam: ServiceProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(ipam.target) as channel:
        yield channel


@pytest.fixture
def nodes(channel: grpc.aio.Channel) -> ipam_pb2_grpc.NodeServiceAsyncStub:
    return ipam_pb2_grpc.NodeServiceStub(channel)


@pytest.fixture
def pools(channel: grpc.aio.Channel) -> ipam_pb2_grpc.PoolServiceAsyncStub:
    return ipam_pb2_grpc.PoolServiceStub(channel)


@pytest.fixture
def addresses(channel: grpc.aio.Channel) -> ipam_pb2_grpc.AddressServiceAsyncStub:
    return ipam_pb2_grpc.AddressServiceStub(channel)


@dataclass(frozen=True)
class Place:
    """What one test has for itself: a /16 for its pool, and a name to derive its names from."""

    number: int

    @property
    def name(self) -> str:
        return f"t{self.number}"

    @property
    def network(self) -> IPv4Network:
        return IPv4Network(f"11.{self.number}.0.0/16")

    def underlay(self, host: int) -> str:
        return f"172.31.{self.number}.{host}"


@pytest.fixture
def place() -> Place:
    return Place(next(_numbers))


@dataclass(frozen=True)
class Home:
    """A pool of /24s with one registered node."""

    pool: str
    node: ipam_pb2.Node


@pytest.fixture
async def home(
    place: Place,
    pools: ipam_pb2_grpc.PoolServiceAsyncStub,
    nodes: ipam_pb2_grpc.NodeServiceAsyncStub,
) -> Home:
    await pools.CreatePool(
        ipam_pb2.CreatePoolRequest(name=place.name, cidrs=[str(place.network)], node_mask_size=24)
    )
    node = await nodes.RegisterNode(
        ipam_pb2.RegisterNodeRequest(name=f"{place.name}-node", ipv4=place.underlay(1), pool=place.name)
    )
    return Home(place.name, node)
