# SPDX-License-Identifier: Apache-2.0
"""What a loader does on its stream, without a kernel: it keeps each subject's entries and acknowledges."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Self

import grpc
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.telemetry import TraceContext
from tests.service.processes import WATCH_SECONDS

# direction, identity, protocol, port, prefix length; then (tier, by address, audit) where one is not as usual
Key = tuple[int, ...]
# denies, rule cookie; then (passes, order) of the tiers that have an order
Value = tuple[int, ...]
# number, by identity, by address
Prefix = tuple[int, bool, bool]


@dataclass
class SubjectState:
    """A subject as the node holds it."""

    snapshots: int = 0
    deltas: int = 0
    ingress: pb.DirectionPolicy = field(default_factory=pb.DirectionPolicy)
    egress: pb.DirectionPolicy = field(default_factory=pb.DirectionPolicy)
    entries: dict[Key, Value] = field(default_factory=dict)
    rules: dict[int, pb.RuleRef] = field(default_factory=dict)
    traces: list[str] = field(default_factory=list)
    transitions: list[int] = field(default_factory=list)


class Loader:
    """A node's subscription. With `acknowledges` every Progress is answered."""

    def __init__(
        self, stub: policy_pb2_grpc.PolicyServiceAsyncStub, name: str, *, acknowledges: bool = True
    ) -> None:
        self.name = name
        self.acknowledges = acknowledges
        self.subjects: dict[int, SubjectState] = {}
        self.prefixes: dict[str, Prefix] = {}
        # What has come, each message by its kind.
        self.told: list[str] = []
        self.revision = pb.Revision()
        self.failure: grpc.aio.AioRpcError | None = None
        self._stub = stub
        self._outgoing: asyncio.Queue[pb.SubscribeRequest | None] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.send(hello=pb.Hello(node=self.name))
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._outgoing.put_nowait(None)
        await asyncio.wait_for(self._task, WATCH_SECONDS)

    async def forgotten(self) -> None:
        """The node leaves the cluster; its stream must have ended."""
        await self._stub.ForgetNode(pb.ForgetNodeRequest(node=self.name))

    def send(
        self,
        *,
        hello: pb.Hello | None = None,
        watch: pb.WatchSubject | None = None,
        unwatch: pb.UnwatchSubject | None = None,
        ack: pb.Ack | None = None,
    ) -> None:
        self._outgoing.put_nowait(pb.SubscribeRequest(hello=hello, watch=watch, unwatch=unwatch, ack=ack))

    def watch(
        self,
        number: int,
        identity: int,
        identity_revision: int = 0,
        ports: tuple[tuple[str, int], ...] = (),
        trace: TraceContext | None = None,
    ) -> None:
        """Watch a subject; `ports` are (name, TCP port)."""
        carried = trace or TraceContext()
        named = [
            types_pb2.NamedPort(name=name, port=port, protocol=types_pb2.PROTOCOL_TCP) for name, port in ports
        ]
        self.send(
            watch=pb.WatchSubject(
                subject=number,
                identity=identity,
                identity_revision=identity_revision,
                named_ports=named,
                trace=types_pb2.TraceContext(traceparent=carried.traceparent),
            )
        )

    def unwatch(self, number: int) -> None:
        self.send(unwatch=pb.UnwatchSubject(subject=number))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as the condition holds; it is looked at after every message."""
        async with asyncio.timeout(WATCH_SECONDS):
            while not condition():
                assert self.failure is None, self.failure
                self._changed.clear()
                await self._changed.wait()

    async def state(self, number: int) -> SubjectState:
        """A subject's state as soon as there is one."""
        await self.until(lambda: number in self.subjects)
        return self.subjects[number]

    async def reaches(self, revision: int) -> None:
        """Everything up to a policy revision has been told."""
        await self.until(lambda: self.revision.policy >= revision)

    async def ended(self) -> grpc.aio.AioRpcError:
        """The error that the service ended the stream with."""
        assert self._task is not None
        await asyncio.wait_for(asyncio.shield(self._task), WATCH_SECONDS)
        assert self.failure is not None
        return self.failure

    async def _requests(self) -> AsyncIterator[pb.SubscribeRequest]:
        while (request := await self._outgoing.get()) is not None:
            yield request

    async def _run(self) -> None:
        try:
            async for message in self._stub.Subscribe(self._requests()):
                self._take(message)
                self._changed.set()
        except grpc.aio.AioRpcError as error:
            self.failure = error
        self._changed.set()

    def _take(self, message: pb.SubscribeResponse) -> None:
        kind = message.WhichOneof("message") or ""
        self.told.append(kind)
        if kind == "prefixes":
            self._take_prefixes(message.prefixes)
            return
        assert self.told[0] == "prefixes", "the first message has all prefixes"
        if kind == "progress":
            self.revision = message.revision
            if self.acknowledges:
                self.send(ack=pb.Ack(revision=message.revision))
            return
        if kind == "snapshot":
            snapshot = message.snapshot
            before = self.subjects.get(snapshot.subject)
            state = SubjectState(snapshots=before.snapshots + 1 if before else 1)
            self.subjects[snapshot.subject] = state
            state.ingress, state.egress = snapshot.ingress, snapshot.egress
            put, rules = snapshot.entries, snapshot.rules
        else:
            delta = message.delta
            state = self.subjects[delta.subject]
            state.deltas += 1
            state.transitions.append(delta.transition)
            state.ingress, state.egress = delta.ingress, delta.egress
            for entry in delta.deletes:
                del state.entries[entry_key(entry)]
            put, rules = delta.upserts, delta.rules
        for entry in put:
            state.entries[entry_key(entry)] = entry_value(entry)
        state.rules.update((rule.cookie, rule) for rule in rules)
        state.traces.append(message.trace.traceparent)

    def _take_prefixes(self, update: pb.PrefixUpdate) -> None:
        assert update.whole is (len(self.told) == 1)
        for cidr in update.deletes:
            del self.prefixes[cidr]
        for prefix in update.upserts:
            self.prefixes[prefix.cidr] = (prefix.identity, prefix.by_identity, prefix.by_address)


def entry_key(entry: pb.PolicyEntry) -> Key:
    key = (entry.direction, entry.identity, entry.protocol, entry.port, entry.port_prefix_length)
    if entry.tier == pb.TIER_NORMAL and not (entry.by_address or entry.audit):
        return key
    return (*key, entry.tier, entry.by_address, entry.audit)


def entry_value(entry: pb.PolicyEntry) -> Value:
    value = (entry.deny, entry.rule_cookie)
    return value if entry.tier == pb.TIER_NORMAL else (*value, entry.passes, entry.order)
