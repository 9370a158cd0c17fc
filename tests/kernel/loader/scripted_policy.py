"""A policy service that says what a test has it say, for loaders that are real."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from fimbria.policy.v1 import policy_pb2 as pb

from tests.patience import patient

ACK_SECONDS = patient(15)
KEY = pb.PolicyKey(kind="Policy", name="script")


@dataclass
class Saying:
    """What is said of the subjects of one identity."""

    ingress: bool = False
    egress: bool = False
    entries: Sequence[pb.PolicyEntry] = ()
    audit_ingress: bool = False

    def snapshot(self, subject: int, identity: int) -> pb.SubjectSnapshot:
        return pb.SubjectSnapshot(
            subject=subject,
            identity=identity,
            ingress=pb.DirectionPolicy(
                enforced=self.ingress,
                enforced_by=[KEY] * self.ingress,
                audit_enforced=self.audit_ingress,
                audit_enforced_by=[KEY] * self.audit_ingress,
            ),
            egress=pb.DirectionPolicy(enforced=self.egress, enforced_by=[KEY] * self.egress),
            entries=self.entries,
            rules=[
                pb.RuleRef(cookie=cookie, policy=KEY, path=f"spec.rules[{cookie}]")
                for cookie in sorted({each.rule_cookie for each in self.entries})
            ],
        )


@dataclass
class _Stream:
    out: queue.SimpleQueue[pb.SubscribeResponse | None]
    subjects: dict[int, int] = field(default_factory=dict)
    """Identity by subject."""


class ScriptedPolicy:
    """Each method returns when the node has acknowledged what it says."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stream: _Stream | None = None
        self._sayings: dict[int, Saying] = {}
        self._prefixes: dict[str, pb.Prefix] = {}
        self._revision = 1
        self._acknowledged = 0
        self.problems: list[str] = []

    def policy(
        self,
        identity: int,
        *entries: pb.PolicyEntry,
        ingress: bool = False,
        egress: bool = False,
        audit_ingress: bool = False,
    ) -> None:
        """The whole policy of an identity from now on."""
        saying = self._sayings[identity] = Saying(ingress, egress, entries, audit_ingress)
        with self._changed:
            stream = self._stream
            for subject, watched in stream.subjects.items() if stream is not None else ():
                if watched == identity:
                    self._put(pb.SubscribeResponse(snapshot=saying.snapshot(subject, identity)))
        self.settle()

    def name(self, *prefixes: pb.Prefix) -> None:
        """Policies refer to these prefixes too, or otherwise."""
        self._prefixes.update((each.cidr, each) for each in prefixes)
        with self._changed:
            self._put(pb.SubscribeResponse(prefixes=pb.PrefixUpdate(upserts=prefixes)))
        self.settle()

    def forget(self, *cidrs: str) -> None:
        """No policy refers to these prefixes any more."""
        for cidr in cidrs:
            del self._prefixes[cidr]
        with self._changed:
            self._put(pb.SubscribeResponse(prefixes=pb.PrefixUpdate(deletes=cidrs)))
        self.settle()

    def reset(self) -> None:
        """Nobody is under any policy."""
        for identity in list(self._sayings):
            self.policy(identity)
        self._sayings.clear()
        if self._prefixes:
            self.forget(*self._prefixes)

    def change_unheard(self, *, forget: Sequence[str] = (), name: Sequence[pb.Prefix] = ()) -> None:
        """Changes what the next stream begins with."""
        for cidr in forget:
            del self._prefixes[cidr]
        self._prefixes.update((each.cidr, each) for each in name)

    def settle(self) -> None:
        """Waits until everything that was said is acknowledged."""
        with self._changed:
            self._revision += 1
            wanted = self._revision
            self._put(pb.SubscribeResponse(progress=pb.Progress()))
            done = self._changed.wait_for(lambda: self._acknowledged >= wanted, ACK_SECONDS)
        assert done, f"revision {wanted} was not acknowledged; the node said {self.problems}"

    def _put(self, message: pb.SubscribeResponse) -> None:
        if self._stream is not None:
            message.revision.CopyFrom(pb.Revision(policy=self._revision, identity=1 << 40))
            self._stream.out.put(message)

    # -- the service

    def subscribe(
        self, requests: Iterator[pb.SubscribeRequest], context: Any
    ) -> Iterator[pb.SubscribeResponse]:
        stream = _Stream(queue.SimpleQueue())
        context.add_callback(lambda: stream.out.put(None))
        threading.Thread(target=self._listen, args=(stream, requests), daemon=True).start()
        while (message := stream.out.get()) is not None:
            yield message

    def list_enforcement(self, request: Any, context: Any) -> pb.ListEnforcementResponse:
        return pb.ListEnforcementResponse()

    def _listen(self, stream: _Stream, requests: Iterator[pb.SubscribeRequest]) -> None:
        try:
            for request in requests:
                with self._changed:
                    self._hear(stream, request)
        except grpc.RpcError:
            # The loader is gone.
            pass
        finally:
            stream.out.put(None)

    def _hear(self, stream: _Stream, request: pb.SubscribeRequest) -> None:
        kind = request.WhichOneof("message")
        if kind == "hello":
            self._stream = stream
            everything = pb.PrefixUpdate(whole=True, upserts=self._prefixes.values())
            self._put(pb.SubscribeResponse(prefixes=everything))
        elif kind == "watch":
            watch = request.watch
            stream.subjects[watch.subject] = watch.identity
            saying = self._sayings.get(watch.identity, Saying())
            self._put(pb.SubscribeResponse(snapshot=saying.snapshot(watch.subject, watch.identity)))
            self._put(pb.SubscribeResponse(progress=pb.Progress()))
        elif kind == "unwatch":
            stream.subjects.pop(request.unwatch.subject, None)
        elif kind == "ack":
            if request.ack.error:
                self.problems.append(request.ack.error)
            self._acknowledged = request.ack.revision.policy
            self._changed.notify_all()


@contextmanager
def scripted_policy(target: str) -> Iterator[ScriptedPolicy]:
    """A scripted policy service that listens there, until the end of the block."""
    made = ScriptedPolicy()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Subscribe": grpc.stream_stream_rpc_method_handler(
            made.subscribe,
            request_deserializer=pb.SubscribeRequest.FromString,
            response_serializer=pb.SubscribeResponse.SerializeToString,
        ),
        "ListEnforcement": grpc.unary_unary_rpc_method_handler(
            made.list_enforcement,
            request_deserializer=pb.ListEnforcementRequest.FromString,
            response_serializer=pb.ListEnforcementResponse.SerializeToString,
        ),
    }
    service = "fimbria.policy.v1.PolicyService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(target)
    server.start()
    try:
        yield made
    finally:
        server.stop(0).wait()


def entry(
    identity: int,
    *,
    cookie: int,
    deny: bool = False,
    egress: bool = False,
    tier: pb.Tier.ValueType = pb.TIER_NORMAL,
    order: int = 0,
    passes: bool = False,
    by_address: bool = False,
    audit: bool = False,
) -> pb.PolicyEntry:
    """An entry about TCP port 80."""
    return pb.PolicyEntry(
        direction=pb.DIRECTION_EGRESS if egress else pb.DIRECTION_INGRESS,
        identity=identity,
        protocol=6,
        port=80,
        port_prefix_length=16,
        deny=deny,
        rule_cookie=cookie,
        tier=tier,
        order=order,
        passes=passes,
        by_address=by_address,
        audit=audit,
    )


def prefix(cidr: str, number: int, *, by_identity: bool = False, by_address: bool = False) -> pb.Prefix:
    """A prefix that policies refer to."""
    return pb.Prefix(cidr=cidr, identity=number, by_identity=by_identity, by_address=by_address)
