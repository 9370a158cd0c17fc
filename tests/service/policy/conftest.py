# SPDX-License-Identifier: Apache-2.0
"""One policy process over each kind of store and one identity process for the tests of a worker; each test
has a namespace of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.policy.v1 import policy_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.labels import pod_labels
from tests.postgres import STORES, store_of
from tests.service.policy.loader import Loader
from tests.service.processes import ServiceProcess, start

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def identity_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    service = start("identity", tmp_path_factory.mktemp("identity"))
    yield service
    assert service.terminate() == 0


@pytest.fixture(scope="session", params=STORES)
def policy_process(
    request: pytest.FixtureRequest,
    identity_process: ServiceProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("policy")
    with store_of("policy", request.param) as flags:
        service = start("policy", directory, f"--identity-target={identity_process.target}", *flags)
        yield service
        assert service.terminate() == 0


@pytest.fixture
async def channel(policy_process: ServiceProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(policy_process.target) as channel:
        yield channel


@pytest.fixture
def policies(channel: grpc.aio.Channel) -> policy_pb2_grpc.PolicyServiceAsyncStub:
    return policy_pb2_grpc.PolicyServiceStub(channel)


class Namespace:
    """A namespace that no other test uses, with its pods' identities."""

    def __init__(self, name: str, identities: identity_pb2_grpc.IdentityServiceAsyncStub) -> None:
        self.name = name
        self._identities = identities

    def labels(self, **labels: str) -> list[str]:
        return list(pod_labels(self.name, labels, {}))

    async def identity(self, **labels: str) -> identity_pb2.Identity:
        return await self._identities.Resolve(identity_pb2.ResolveRequest(labels=self.labels(**labels)))


@pytest.fixture
async def namespace(identity_process: ServiceProcess) -> AsyncIterator[Namespace]:
    async with open_channel(identity_process.target) as channel:
        yield Namespace(f"t{next(_numbers)}", identity_pb2_grpc.IdentityServiceStub(channel))


@pytest.fixture
async def node(
    policies: policy_pb2_grpc.PolicyServiceAsyncStub, namespace: Namespace
) -> AsyncIterator[Loader]:
    async with Loader(policies, f"node-{namespace.name}") as loader:
        yield loader
    await loader.forgotten()
