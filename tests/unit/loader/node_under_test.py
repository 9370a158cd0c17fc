"""A loader's core over fakes, and what its callers say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fimbria.identity.v1 import identity_pb2

from services.loader.cni.interface_settings import InterfaceSettings
from services.loader.cni.pod import Pod
from services.loader.cni.request import AddRequest, CniRequest
from services.loader.endpoints.cni_calls import CniCalls
from services.loader.endpoints.creation import EndpointMaker
from services.loader.endpoints.device_watch import DeviceWatch
from services.loader.endpoints.endpoint import Endpoint
from services.loader.endpoints.identity_use import IdentityUse
from services.loader.endpoints.manager import EndpointManager
from services.loader.endpoints.orphans import OrphanFinder
from services.loader.endpoints.publication import Publication
from services.loader.endpoints.records import StateDirectory
from services.loader.endpoints.refresh import Refresh
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.endpoints.releases import Releases
from services.loader.endpoints.restore import Restoration, Restored
from services.loader.ipcache.sync import IpcacheSync
from services.loader.policy.prefixes import PolicyPrefixes
from services.loader.policy.subjects import Subject, SubjectTable
from services.loader.policy.sync import PolicySync
from services.loader.streams.watermark import Watermark
from tests.unit.loader.fakes import Counting, FakeBarrier, FakeKernel, FakeLinks, FakeServices
from tests.unit.loader.policy_service import FakePolicyService
from tests.unit.loader.waiting import until


async def _no_feed(revision: int) -> AsyncIterator[identity_pb2.WatchIpCacheResponse]:
    await asyncio.Event().wait()
    yield identity_pb2.WatchIpCacheResponse()


@dataclass
class NodeUnderTest:
    """A loader's core over fakes. ``restart`` makes another over the same kernel, devices, services and
    disk.
    """

    directory: Path
    kernel: FakeKernel
    links: FakeLinks
    services: FakeServices
    policy_service: FakePolicyService
    barrier: FakeBarrier = field(default_factory=FakeBarrier)
    boot: str = "boot-1"

    def start(self) -> None:
        self.state = StateDirectory(self.directory)
        heads = self.kernel.rows.values()
        self.subjects = SubjectTable(
            self.kernel,
            instances=Counting(max((head.instance for head in heads), default=0) + 1),
            epochs=Counting(max((head.epoch for head in heads), default=0) + 1),
            numbers=Counting(max(self.kernel.rows, default=0) + 1),
            later=asyncio.get_running_loop().call_later,
        )
        self.registry = EndpointRegistry(self.state)
        identity_revision = Watermark()
        self.ipcache = IpcacheSync(
            node="node-1",
            kernel=self.kernel,
            open_stream=_no_feed,
            identity_revision=identity_revision,
        )
        self.policy = PolicySync(
            node="node-1",
            open_stream=self.policy_service.open,
            table=self.subjects,
            changed=self._changed,
            histories=self.registry.histories,
            prefixes=PolicyPrefixes(self.kernel, self.ipcache),
            identity_revision=identity_revision,
        )
        self.publication = Publication(self.services, self.registry)
        self.releases = Releases(self.state, self.services, self.publication)
        self.uses = IdentityUse(self.registry, self.services, filter_seconds=0.01, coalesce_seconds=0.01)
        self.maker = EndpointMaker(
            registry=self.registry,
            releases=self.releases,
            addresses=self.services,
            identities=self.services,
            kernel=self.kernel,
            links=self.links,
            policy=self.policy,
            ipcache=self.ipcache,
            barrier=self.barrier,
            publication=self.publication,
            uses=self.uses,
        )
        self.manager = EndpointManager(
            node="node-1",
            registry=self.registry,
            releases=self.releases,
            maker=self.maker,
            subjects=self.subjects,
            identities=self.services,
            kernel=self.kernel,
            links=self.links,
            policy=self.policy,
            ipcache=self.ipcache,
            barrier=self.barrier,
            publication=self.publication,
            uses=self.uses,
            clock=lambda: 1.0,
        )
        self.orphans = OrphanFinder(
            registry=self.registry,
            subjects=self.subjects,
            kernel=self.kernel,
            links=self.links,
            manager=self.manager,
            releases=self.releases,
            publication=self.publication,
            addresses=self.services,
            identities=self.services,
            damaged=lambda: bool(self.state.damaged),
        )
        self.watch = DeviceWatch(
            registry=self.registry,
            manager=self.manager,
            kernel=self.kernel,
            links=self.links,
            node_devices=frozenset,
            node_changed=lambda: None,
        )
        self.refresh = Refresh(
            registry=self.registry,
            subjects=self.subjects,
            kernel=self.kernel,
            policy=self.policy,
            ipcache=self.ipcache,
            regenerator=self.manager.regenerator,
            devices=self.watch,
            node=lambda unhooked: None,
        )
        self.cni = CniCalls("node-1", self.manager, self.registry)
        self.running = asyncio.create_task(self.policy.run())

    def _changed(self, subject: Subject) -> None:
        self.manager.subject_changed(subject)

    async def stop(self) -> None:
        self.running.cancel()
        await self.manager.regenerator.close()
        await self.policy.close()
        with suppress(asyncio.CancelledError):
            await self.running

    async def restart(self) -> Restored:
        await self.stop()
        self.start()
        return await Restoration(
            state=self.state,
            registry=self.registry,
            subjects=self.subjects,
            kernel=self.kernel,
            links=self.links,
            maker=self.maker,
            ipcache=self.ipcache,
            orphans=self.orphans,
            failed=self.manager.realization_failed,
        ).run(self.boot)

    async def nothing_left(self) -> None:
        assert len(self.registry) == 0
        assert self.state.load_endpoints() == []
        assert self.links.devices == {}
        assert self.kernel.endpoints == {}
        assert self.kernel.addresses == {}
        await until(lambda: self.kernel.rows == {})


def request(
    command: str, container: str = "c1", netns: str = "/run/netns/web", ifname: str = "eth0"
) -> CniRequest:
    return CniRequest(command, container, ifname, netns, 3, {}, {}, 0, "", 0)


def add(container: str = "c1", app: str = "web", netns: str = "/run/netns/web", rate: int = 0) -> AddRequest:
    pod = Pod("shop", app, {"app": app}, {}, ())
    return AddRequest("ADD", container, "eth0", netns, 3, {}, {}, 0, "", 0, pod, InterfaceSettings(rate=rate))


def only(node: NodeUnderTest) -> Endpoint:
    (endpoint,) = list(node.registry)
    return endpoint
