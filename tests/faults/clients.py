"""Clients of the services that record what they ask for and what they are told."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.errors import error_from_rpc
from tests.faults.history import History, OutcomeUnknown, Refused
from tests.patience import patient

CLIENTS: Final = 32
CALL_SECONDS: Final = patient(4.0)
# After these a call may have taken effect, or may yet: the connection was lost, or nobody waited.
_UNKNOWN: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
# After these it has not.
_REFUSED: Final = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION}

# The store could not be reached, or it is being closed: nothing was begun.
_NOT_DONE: Final = {"DATABASE_BUSY", "DATABASE_CLOSED"}
# What gRPC says of a call that it has never sent.
_NOT_SENT: Final = "connections to all backends failing"

# How long label sets that pass are resolved, how many groups of them take turns, and what they begin with.
TURN_SECONDS: Final = 0.3
TURNS: Final = 12
PASSING: Final = "k8s:pass="

R = TypeVar("R")


@dataclass
class Load:
    """32 clients of ipam and identity, until they are told to stop. One event loop, one history each."""

    ipam: str
    identity: str
    seed: int
    nodes: tuple[str, ...] = ()
    addresses: History = field(default_factory=History)
    numbers: History = field(default_factory=History)
    entries: History = field(default_factory=History)
    passing: History = field(default_factory=History)
    """Identities that nobody uses any more once they have been resolved."""
    problems: list[str] = field(default_factory=list)
    only: tuple[str, ...] = ("addresses", "addresses", "numbers", "entries", "passing")
    """What clients do, each as often as it is named."""
    pace: float = 0.0
    """Seconds that a client rests between calls, on average: more keys are then in the hands of few calls."""

    def __post_init__(self) -> None:
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Load:
        # One connection to each replica for every eight clients. Calls are not repeated by gRPC: whether the
        # first try took effect is what this is about.
        channels = []
        for target in (self.ipam, self.identity):
            opened = [open_channel(target, retry=False, timeout=CALL_SECONDS) for _ in range(4)]
            channels.append([await self._stack.enter_async_context(each) for each in opened])
        for number in range(CLIENTS):
            addresses = ipam_pb2_grpc.AddressServiceStub(channels[0][number % 4])
            client = _Client(
                self,
                number,
                random.Random(f"{self.seed}-{number}"),
                addresses,
                identity_pb2_grpc.IdentityServiceStub(channels[1][number % 4]),
                identity_pb2_grpc.IpCacheServiceStub(channels[1][number % 4]),
            )
            self._tasks.append(asyncio.create_task(client.work(), name=f"client-{number}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self._stack.aclose()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    async def stop(self) -> None:
        """Lets every client finish the call that it is in."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def more(self, acknowledged: int, seconds: float = patient(30.0)) -> None:
        """Returns when so many more calls have been acknowledged."""
        goal = self.acknowledged + acknowledged
        async with asyncio.timeout(seconds):
            while self.acknowledged < goal:  # noqa: ASYNC110 - what it waits for happens in other tasks
                await asyncio.sleep(0.02)

    @property
    def histories(self) -> tuple[History, ...]:
        return self.addresses, self.numbers, self.entries, self.passing

    @property
    def acknowledged(self) -> int:
        return sum(each.acknowledged for each in self.histories)

    async def call(self, call: Callable[[], Awaitable[R]]) -> R:
        """The answer; Refused and OutcomeUnknown for what histories have to know."""
        try:
            return await call()
        except grpc.RpcError as error:
            failure = error_from_rpc(error)
        # Whoever finds nobody there does not ask again and again at once.
        await asyncio.sleep(random.uniform(0.05, 0.15))
        if _NOT_SENT in failure.message or failure.reason in _NOT_DONE:
            raise Refused
        if failure.code in _UNKNOWN:
            raise OutcomeUnknown
        if failure.code not in _REFUSED:
            # INTERNAL and the like are never right, whatever dies.
            self.problems.append(repr(failure))
            raise OutcomeUnknown
        raise Refused


@dataclass
class _Client:
    load: Load
    number: int
    random: random.Random
    addresses: ipam_pb2_grpc.AddressServiceAsyncStub
    identities: identity_pb2_grpc.IdentityServiceAsyncStub
    ipcache: identity_pb2_grpc.IpCacheServiceAsyncStub

    async def work(self) -> None:
        ways = {
            "addresses": self._addresses,
            "numbers": self._numbers,
            "entries": self._entries,
            "passing": self._passing,
        }
        acts = [ways[name] for name in self.load.only]
        while not self.load.stopped:
            await self.random.choice(acts)()
            if self.load.pace:
                await asyncio.sleep(self.random.random() * 2 * self.load.pace)

    def _key(self) -> str:
        """A key of the client's own, or one that it shares with three others; after a while other ones.

        Few operations each, so that a search through their orders ends.
        """
        if self.random.random() < 0.25:
            return f"shared-{self.number // 4}-{self._turn // 8}"
        return f"{self.number}-{self.random.randrange(3)}-{self._turn}"

    @property
    def _turn(self) -> int:
        return sum(len(each.operations) for each in self.load.histories) // 3000

    async def _addresses(self) -> None:
        node = self.load.nodes[self.number % len(self.load.nodes)]
        if self.random.random() < 0.15:
            await self._batches(node)
            return
        owner = self._key()
        key = f"{node}/{owner}"
        if self.random.random() < 0.55:
            with self.load.addresses.operation("take", key) as done:
                request = ipam_pb2.AllocateRequest(node=node, owner=owner)
                done.result = (await self.load.call(lambda: self.addresses.Allocate(request))).address
        else:
            with self.load.addresses.operation("free", key) as done:
                released = ipam_pb2.ReleaseRequest(node=node, owner=owner)
                done.result = (await self.load.call(lambda: self.addresses.Release(released))).address

    async def _batches(self, node: str) -> None:
        owners = [f"{self.number}-batch-{self._turn}-{each}" for each in range(3)]
        keys = [f"{node}/{owner}" for owner in owners]
        if self.random.random() < 0.5:
            with self.load.addresses.batch("take", keys) as done:
                request = ipam_pb2.AllocateBatchRequest(node=node, owners=owners)
                answer = await self.load.call(lambda: self.addresses.AllocateBatch(request))
                for operation, address in zip(done, answer.addresses, strict=True):
                    operation.result = address.address
        else:
            with self.load.addresses.batch("drop", keys):
                holdings = [ipam_pb2.Holding(owner=owner) for owner in owners]
                release = ipam_pb2.ReleaseBatchRequest(node=node, holdings=holdings)
                await self.load.call(lambda: self.addresses.ReleaseBatch(release))

    async def _numbers(self) -> None:
        key = f"k8s:app=a{self._key()}"
        with self.load.numbers.operation("take", key) as done:
            request = identity_pb2.ResolveRequest(labels=[key], holder=f"node/n{self.number % 3}")
            done.result = str((await self.load.call(lambda: self.identities.Resolve(request))).id)

    async def _passing(self) -> None:
        # A dozen groups of label sets that come and go in turn: each rests for longer than the grace period.
        group = int(time.monotonic() / TURN_SECONDS) % TURNS
        key = f"{PASSING}{group}-{self.random.randrange(3)}"
        with self.load.passing.operation("take", key) as done:
            request = identity_pb2.ResolveRequest(labels=[key])
            done.result = str((await self.load.call(lambda: self.identities.Resolve(request))).id)

    async def _entries(self) -> None:
        prefix = f"10.{self.number // 4}.{self._turn % 250}.{self.random.randrange(12)}/32"
        node = f"n{self.random.randrange(2)}"
        if self.random.random() < 0.6:
            identity = self.random.choice([1, 2, 6])
            with self.load.entries.operation("put", prefix, f"{node} {identity}"):
                entry = identity_pb2.IpCacheEntry(prefix=prefix, identity=identity)
                publish = identity_pb2.PublishRequest(node=node, entries=[entry])
                await self.load.call(lambda: self.ipcache.Publish(publish))
        else:
            with self.load.entries.operation("drop", prefix, node):
                withdraw = identity_pb2.WithdrawRequest(node=node, prefixes=[prefix])
                await self.load.call(lambda: self.ipcache.Withdraw(withdraw))


async def paged(method: Any, request: Any, name: str) -> list[Any]:
    """All items of a list; asked for again while a replica is just coming back."""
    request.page_size = 1000
    items: list[Any] = []
    while True:
        answer = await method(request, timeout=patient(20.0), wait_for_ready=True)
        items.extend(getattr(answer, name))
        if not answer.next_page_token:
            return items
        request.page_token = answer.next_page_token
