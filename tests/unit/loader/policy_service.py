"""A policy service that says what the test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
from fimbria.policy.v1 import policy_pb2 as pb


class Broken(grpc.RpcError):
    """The connection is gone."""


class FakePolicyService:
    """One stream at a time; ``heard`` is what the loader said on it."""

    def __init__(self) -> None:
        self.heard: list[pb.SubscribeRequest] = []
        self.streams = 0
        self._say: asyncio.Queue[pb.SubscribeResponse | None] = asyncio.Queue()
        self._told = asyncio.Event()
        self._answers: dict[int, pb.SubscribeResponse] = {}

    async def open(self, requests: AsyncIterator[pb.SubscribeRequest]) -> AsyncIterator[pb.SubscribeResponse]:
        self.streams += 1
        self._say = asyncio.Queue()
        listening = asyncio.create_task(self._listen(requests))
        try:
            while (message := await self._say.get()) is not None:
                yield message
        finally:
            listening.cancel()
        raise Broken

    def answer(self, identity: int, message: pb.SubscribeResponse) -> None:
        """Whoever watches a subject of this identity is told this, with his number for it."""
        self._answers[identity] = message

    def fall_silent(self) -> None:
        """Whoever watches is told nothing any more."""
        self._answers.clear()

    def say(self, message: pb.SubscribeResponse) -> None:
        self._say.put_nowait(message)

    def break_stream(self) -> None:
        self._say.put_nowait(None)

    async def hear(self, kind: str, count: int = 1) -> list[pb.SubscribeRequest]:
        """Waits until ``count`` messages of a kind have been heard; returns all of that kind."""
        async with asyncio.timeout(5):
            while True:
                found = [each for each in self.heard if each.WhichOneof("message") == kind]
                if len(found) >= count:
                    return found
                self._told.clear()
                await self._told.wait()

    @property
    def acks(self) -> list[tuple[int, str]]:
        return [(each.ack.revision.policy, each.ack.error) for each in self.heard if each.HasField("ack")]

    async def _listen(self, requests: AsyncIterator[pb.SubscribeRequest]) -> None:
        async for request in requests:
            self.heard.append(request)
            self._told.set()
            if request.HasField("watch") and request.watch.identity in self._answers:
                message = pb.SubscribeResponse()
                message.CopyFrom(self._answers[request.watch.identity])
                message.snapshot.subject = request.watch.subject
                message.trace.CopyFrom(request.watch.trace)
                self.say(message)


def entry(
    identity: int,
    port: int = 80,
    *,
    deny: bool = False,
    cookie: int = 1,
    by_address: bool = False,
    audit: bool = False,
) -> pb.PolicyEntry:
    return pb.PolicyEntry(
        direction=pb.DIRECTION_INGRESS,
        identity=identity,
        protocol=6,
        port=port,
        port_prefix_length=16,
        deny=deny,
        rule_cookie=cookie,
        by_address=by_address,
        audit=audit,
    )


def revision(policy: int, identity: int = 0) -> pb.Revision:
    return pb.Revision(policy=policy, identity=identity)


def snapshot(
    subject: int, *entries: pb.PolicyEntry, policy: int = 1, identity: int = 1
) -> pb.SubscribeResponse:
    web = pb.PolicyKey(kind="CiliumNetworkPolicy", namespace="shop", name="web")
    return pb.SubscribeResponse(
        revision=revision(policy, identity),
        snapshot=pb.SubjectSnapshot(
            subject=subject,
            ingress=pb.DirectionPolicy(enforced=True, enforced_by=[web]),
            egress=pb.DirectionPolicy(),
            entries=entries,
            rules=[pb.RuleRef(cookie=1, policy=web, path="spec.ingress[0]")],
        ),
    )


def delta(
    subject: int,
    upserts: Sequence[pb.PolicyEntry] = (),
    deletes: Sequence[pb.PolicyEntry] = (),
    *,
    policy: int = 2,
    identity: int = 1,
    transition: pb.Transition.ValueType = pb.TRANSITION_NEUTRAL,
) -> pb.SubscribeResponse:
    return pb.SubscribeResponse(
        revision=revision(policy, identity),
        delta=pb.SubjectDelta(
            subject=subject,
            ingress=pb.DirectionPolicy(enforced=True),
            egress=pb.DirectionPolicy(),
            upserts=upserts,
            deletes=deletes,
            transition=transition,
        ),
    )


def prefix(cidr: str, number: int, *, by_identity: bool = False, by_address: bool = False) -> pb.Prefix:
    return pb.Prefix(cidr=cidr, identity=number, by_identity=by_identity, by_address=by_address)


def prefixes(
    upserts: Sequence[pb.Prefix] = (), deletes: Sequence[str] = (), *, whole: bool = False
) -> pb.SubscribeResponse:
    return pb.SubscribeResponse(prefixes=pb.PrefixUpdate(upserts=upserts, deletes=deletes, whole=whole))


def progress(policy: int, identity: int = 1) -> pb.SubscribeResponse:
    return pb.SubscribeResponse(revision=revision(policy, identity), progress=pb.Progress())
