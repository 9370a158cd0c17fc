"""One real identity process over each kind of store for the tests of a worker; each test has names and
addresses of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2_grpc

from services.chassis.channel import open_channel
from tests.postgres import STORES, store_of
from tests.service.processes import ServiceProcess, start

_numbers = itertools.count(1)


@pytest.fixture(scope="session", params=STORES)
def identity(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    with store_of("identity", request.param) as flags:
        service = start("identity", tmp_path_factory.mktemp("identity"), *flags)
        yield service
        assert service.terminate() == 0


@pytest.fixture
async def channel(identity: ServiceProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(identity.target) as channel:
        yield channel


@pytest.fixture
def identities(channel: grpc.aio.Channel) -> identity_pb2_grpc.IdentityServiceAsyncStub:
    return identity_pb2_grpc.IdentityServiceStub(channel)


@pytest.fixture
def ipcache(channel: grpc.aio.Channel) -> identity_pb2_grpc.IpCacheServiceAsyncStub:
    return identity_pb2_grpc.IpCacheServiceStub(channel)


@dataclass(frozen=True)
class Place:
    """What one test has for itself: a /16, a name for its nodes and labels."""

    number: int

    @property
    def name(self) -> str:
        return f"t{self.number}"

    def labels(self, app: str) -> list[str]:
        return [f"k8s:app={app}", f"k8s:io.kubernetes.pod.namespace={self.name}"]

    def prefix(self, host: int) -> str:
        return f"10.{self.number}.{host >> 8}.{host & 255}/32"


@pytest.fixture
def place() -> Place:
    return Place(next(_numbers))
