# SPDX-License-Identifier: Apache-2.0
"""Following the identity service through whatever happens to its watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2 as pb
from fimbria.types.v1 import types_pb2

from services.chassis.errors import STATUS_DETAILS_KEY, FimbriaError, OutOfRange, Unavailable, rich_status
from services.policy import identities
from services.policy.distribution import Distributor, Message, Watch
from services.policy.engine import Subject
from services.policy.identities import RESERVED_IDENTITIES, IdentityFollower
from services.policy.manifest import parse_manifests
from services.policy.resolve import BoundPolicy
from services.policy.selector import Labels
from services.policy.store import StoredPolicy


def failure(error: FimbriaError) -> grpc.aio.AioRpcError:
    details = grpc.aio.Metadata((STATUS_DETAILS_KEY, rich_status(error).SerializeToString()))
    return grpc.aio.AioRpcError(error.code, grpc.aio.Metadata(), details, error.message)


def put(number: int, app: str, trace: str = "") -> pb.IdentityEvent:
    return pb.IdentityEvent(
        type=types_pb2.CHANGE_TYPE_PUT,
        identity=pb.Identity(id=number, labels=[f"k8s:app={app}"]),
        trace=types_pb2.TraceContext(traceparent=trace),
    )


def gone(number: int) -> pb.IdentityEvent:
    return pb.IdentityEvent(type=types_pb2.CHANGE_TYPE_DELETE, identity=pb.Identity(id=number))


def batch(revision: int, *events: pb.IdentityEvent, complete: bool = False) -> pb.WatchIdentitiesResponse:
    return pb.WatchIdentitiesResponse(events=events, revision=revision, snapshot_complete=complete)


class Watches:
    """A stub whose watches follow a script; `starts` are the revisions that they were asked to start from."""

    def __init__(self, *scripts: Sequence[pb.WatchIdentitiesResponse | Exception]) -> None:
        self._scripts = iter(scripts)
        self.starts: list[int] = []
        self.done = asyncio.Event()

    def WatchIdentities(
        self, request: pb.WatchIdentitiesRequest
    ) -> AsyncIterator[pb.WatchIdentitiesResponse]:
        self.starts.append(request.from_revision)
        return self._play(next(self._scripts, None))

    async def _play(
        self, script: Sequence[pb.WatchIdentitiesResponse | Exception] | None
    ) -> AsyncIterator[pb.WatchIdentitiesResponse]:
        if script is None:
            self.done.set()
            await asyncio.Event().wait()
        for step in script or ():
            if isinstance(step, Exception):
                raise step
            yield step


async def follow(distributor: Distributor, watches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the script is over."""
    monkeypatch.setattr(identities, "FIRST_BACKOFF_SECONDS", 0.0)
    task = asyncio.create_task(IdentityFollower(watches, distributor, "unix:/nowhere").run())
    try:
        await asyncio.wait_for(watches.done.wait(), 10)
    finally:
        task.cancel()


def known(distributor: Distributor) -> dict[int, str]:
    found = {}
    for number in distributor.engine.identities():
        labels = distributor.engine.labels(number)
        assert labels is not None
        if number not in RESERVED_IDENTITIES:
            found[number] = next(iter(labels.strings)).split("=")[1]
    return found


LOST = failure(Unavailable("gone", reason="DRAINING"))
COMPACTED = failure(OutOfRange("too old", reason="REVISION_COMPACTED"))


async def test_the_first_state_counts_only_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    distributor = Distributor()
    watches = Watches([batch(0, put(300, "a")), LOST], [batch(0, put(301, "b")), batch(7, complete=True)])
    await follow(distributor, watches, monkeypatch)
    assert known(distributor) == {301: "b"}
    assert distributor.engine.labels(2) == Labels(["reserved:world"])
    assert distributor.revision.identity == 7
    assert watches.starts == [0, 0, 7]


async def test_a_broken_watch_is_resumed_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    distributor = Distributor()
    watches = Watches(
        [batch(5, put(300, "a"), complete=True), batch(6, put(301, "b")), LOST],
        [batch(8, gone(300), put(302, "c"))],
    )
    await follow(distributor, watches, monkeypatch)
    assert watches.starts == [0, 6, 8]
    assert known(distributor) == {301: "b", 302: "c"}


async def test_after_compaction_everything_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    distributor = Distributor()
    watches = Watches(
        [batch(5, put(300, "a"), put(301, "b"), complete=True), COMPACTED],
        [batch(0, put(301, "b")), batch(90, put(302, "c"), complete=True)],
    )
    await follow(distributor, watches, monkeypatch)
    assert watches.starts == [0, 0, 90]
    assert known(distributor) == {301: "b", 302: "c"}


async def test_changes_in_one_batch_keep_the_traces_of_their_writers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (manifest,) = parse_manifests(
        "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: web}, "
        "spec: {endpointSelector: {}, ingress: [{fromEntities: [cluster]}]}}"
    )
    bound = BoundPolicy(manifest.policy, {"spec.ingress[0]": 1})
    distributor = Distributor([StoredPolicy(bound, manifest.text, 1, 0)], 1)
    subscription = distributor.subscribe("node-1")
    distributor.watch(subscription, Watch(1, Subject(300)))
    first, second = (f"00-{digit * 32}-{digit * 16}-01" for digit in "12")
    told: list[tuple[str, str]] = []

    def note(message: Message) -> None:
        told.append((type(message).__name__, message.trace.traceparent))

    monkeypatch.setattr(subscription, "send", note)
    watches = Watches(
        [
            batch(5, put(300, "a"), complete=True),
            batch(9, put(301, "b", first), put(302, "c", first), put(303, "d", second)),
        ]
    )
    await follow(distributor, watches, monkeypatch)
    assert [trace for kind, trace in told if kind == "Update"] == ["", first, second]
    assert told[-1] == ("Progress", second)
    assert distributor.revision.identity == 9
