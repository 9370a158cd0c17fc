"""The subscription to the policy service: what it says of this node's subjects goes into the kernel, and is
acknowledged.

The stream may break and come back at any time. What is in force stays in force; every subject is watched
anew, and nothing is acknowledged before all of them have been heard of again.

Prefixes that policies name begin to take effect when the entries about them are in force for every subject,
which were sent before them, and end before whatever is said next.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.types.v1 import types_pb2
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from services.chassis import names
from services.chassis.errors import Unavailable, error_from_rpc
from services.chassis.logs import get_logger
from services.chassis.telemetry import TraceContext, inject, remote_context, span
from services.loader import measure_points
from services.loader.endpoints.history import Histories
from services.loader.endpoints.regeneration import Cause, Level
from services.loader.interfaces import DatapathError
from services.loader.policy.messages import (
    ack_message,
    cidr_of,
    default_of,
    entries_of,
    entry_key,
    is_whole,
    prefix_of,
    rule_name,
    state_of,
    watch_message,
)
from services.loader.policy.plan import Plan, Realized, apply_delta
from services.loader.policy.prefixes import PolicyPrefixes
from services.loader.policy.readings import Entries, Readings
from services.loader.policy.subjects import HOST_USER, Subject, SubjectKey, SubjectTable
from services.loader.streams.backoff import Backoff
from services.loader.streams.watch import WatchState
from services.loader.streams.watermark import Watermark

# How long a new subject waits for its policy, and how long for a connection: a service that restarts is
# back by then.
SNAPSHOT_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 1.5
# Names of rules are kept until there are twice as many as entries refer to, and this many at least.
_RULES: Final = 4096

_log = get_logger(__name__)


OpenStream = Callable[[AsyncIterator[pb.SubscribeRequest]], AsyncIterable[pb.SubscribeResponse]]


@dataclass(frozen=True, slots=True)
class PolicyReading:
    """Entries of the kernel, read when a subject was realized as it is in ``of``."""

    of: Realized | None
    entries: Entries


@dataclass(slots=True)
class _Stream:
    """What belongs to one connection: messages to send, subjects not heard of since it opened, and whether
    the service has named its prefixes.
    """

    outgoing: asyncio.Queue[pb.SubscribeRequest]
    unheard: set[int]
    progress: pb.Revision | None = None
    prefixes: bool = False


class PolicySync:
    """Keeps the kernel's policy as the service says. ``changed`` is called with a subject whose realization
    succeeded or failed. ``identity_revision`` tells others how far the policy maps know identities.
    """

    def __init__(
        self,
        *,
        node: str,
        open_stream: OpenStream,
        table: SubjectTable,
        changed: Callable[[Subject], None],
        histories: Histories | None = None,
        target: str = "",
        prefixes: PolicyPrefixes | None = None,
        identity_revision: Watermark | None = None,
    ) -> None:
        self._node = node
        self._open_stream = open_stream
        self._table = table
        self._changed = changed
        self._histories = histories or Histories(node)
        self._readings = Readings(table.entries)
        self._target = target
        self._prefixes = prefixes
        if prefixes is not None:
            table.dormant = prefixes.dormant
        self._stream: _Stream | None = None
        self._heard: dict[int, list[asyncio.Future[None]]] = {}
        self._acknowledged = pb.Revision()
        self._retry: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self.rules: dict[int, str] = {}
        self._rules_limit = _RULES
        self.state = WatchState("policy")
        self.policy_revision = Watermark()
        self.identity_revision = identity_revision or Watermark()

    async def run(self) -> None:
        """Keeps the subscription open until cancelled."""
        backoff = Backoff()
        while True:
            self._wanted.clear()
            stream = _Stream(asyncio.Queue(), {subject.number for subject in self._table})
            try:
                stream.outgoing.put_nowait(pb.SubscribeRequest(hello=pb.Hello(node=self._node)))
                for subject in self._table:
                    stream.outgoing.put_nowait(watch_message(subject, TraceContext()))
                self._stream = stream
                async for message in self._open_stream(_drain(stream.outgoing)):
                    backoff.reset()
                    self.state.opened()
                    self._take(stream, message)
                problem = "the policy service ended the stream"
            except grpc.RpcError as error:
                problem = str(error_from_rpc(error, self._target))
            except ValueError as error:
                problem = f"the policy service sent something that makes no sense: {error}"
            finally:
                self._stream = None
            self.state.failed(problem)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.next()):
                    await self._wanted.wait()
                    backoff.reset()

    async def subscribe(self, key: SubjectKey, identity_revision: int, user: int) -> Subject:
        """The subject of a key, with ``user`` among its users, as soon as its policy is known; it may still
        have to be realized.

        Raises Unavailable (POLICY_UNAVAILABLE) when the service does not say in time; the use has then been
        ended.
        """
        subject, new = self._table.acquire(key, identity_revision, user)
        attributes: dict[str, Any] = {names.IDENTITY: key.identity, names.SUBJECT: subject.number}
        with span(names.POLICY_SUBSCRIBE, kind=SpanKind.CLIENT, **attributes):
            try:
                if new:
                    self._send(watch_message(subject, inject()))
                if subject.wanted is None and subject.realized is None:
                    await self._hear(subject)
            except BaseException:
                self.release(subject, user)
                raise
        return subject

    def release(self, subject: Subject, user: int) -> None:
        """Ends a use of a subject; with the last one its policy leaves the kernel."""
        if self._table.release(subject, user):
            self._send(pb.SubscribeRequest(unwatch=pb.UnwatchSubject(subject=subject.number)))
            if self._stream is not None:
                self._stream.unheard.discard(subject.number)
                self._acknowledge()

    async def verify(self, subject: Subject) -> None:
        """Compares a subject with the kernel itself and writes what differs. Raises as :meth:`realize`."""
        self.compare(subject, await self.read(subject))

    @property
    def prefix_problem(self) -> str:
        """Why the kernel does not hold the prefixes that policies name; empty when it does."""
        return self._prefixes.problem if self._prefixes is not None else ""

    async def verify_prefixes(self) -> int:
        """Compares the prefixes that policies name with the kernel, and writes what differs; returns how many
        did. Raises DatapathError; it is tried again later all the same.
        """
        if self._prefixes is None:
            return 0
        try:
            differing = await self._prefixes.verify()
        finally:
            if self.prefix_problem:
                self._schedule_retry()
        if differing:
            self._judge_again()
        return differing

    async def read(self, subject: Subject) -> PolicyReading:
        """What the kernel holds of a subject's policy. Raises DatapathError."""
        before = subject.realized
        return PolicyReading(before, await self._readings.fresh())

    def compare(self, subject: Subject, reading: PolicyReading) -> None:
        """Writes what differs from a reading. Raises as :meth:`realize`."""
        if subject.realized is not reading.of:
            # Written meanwhile: what was read may be from before that.
            self._write(subject, self._table.rewrite)
        else:
            self._write(subject, lambda found: self._table.compare(found, reading.entries))

    def realize(self, subject: Subject) -> None:
        """Puts what is known of a subject into the kernel, within a span of its own.

        Raises DatapathError; it is tried again later all the same.
        """
        self._write(subject, self._table.realize)

    def _write(self, subject: Subject, write: Callable[[Subject], Plan | None]) -> None:
        with span(names.BPF_MAPS_SYNC) as current, measure_points.in_bpf_phase("maps.sync"):
            try:
                done = write(subject)
            except DatapathError:
                self._schedule_retry()
                self._changed(subject)
                raise
            current.set_attribute(names.ADDS, len(done.puts) if done else 0)
            current.set_attribute(names.DELETES, len(done.removals) + len(done.retired) if done else 0)
        self._changed(subject)

    async def close(self) -> None:
        """Ends what runs beside :meth:`run`."""
        if self._retry is not None:
            self._retry.cancel()

    async def _hear(self, subject: Subject) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard.setdefault(subject.number, []).append(future)
        self._wanted.set()  # no more waiting before the next connection, if there is none
        await asyncio.wait([future], timeout=CONNECT_SECONDS)
        if not future.done() and self.state.connected:
            await asyncio.wait([future], timeout=SNAPSHOT_SECONDS - CONNECT_SECONDS)
        if not future.done():
            future.cancel()
            raise Unavailable(
                f"the policy of identity {subject.key.identity} is not known: "
                + (self.state.error or f"it did not come within {SNAPSHOT_SECONDS:g} seconds"),
                reason="POLICY_UNAVAILABLE",
                retry_after=1.0,
            )

    def _send(self, message: pb.SubscribeRequest) -> None:
        # Without a stream there is nothing to say: the next one begins with everything.
        if self._stream is not None:
            self._stream.outgoing.put_nowait(message)

    def _take(self, stream: _Stream, message: pb.SubscribeResponse) -> None:
        kind = message.WhichOneof("message")
        if not stream.prefixes:
            stream.prefixes = True
            if kind != "prefixes":
                # A service that knows of no prefixes.
                self._take_prefixes(pb.PrefixUpdate(whole=True))
        if kind == "progress":
            stream.progress = message.revision
            self._acknowledge()
            return
        if kind == "prefixes":
            self._take_prefixes(message.prefixes, message.trace)
            return
        part = message.snapshot if kind == "snapshot" else message.delta
        subject = self._table.get(part.subject)
        if kind is None or subject is None:
            return  # about a subject that was released meanwhile
        self._learn_rules(part.rules)
        if kind == "snapshot":
            subject.want(state_of(message.snapshot, message.revision.policy))
        elif subject.wanted is None or subject.number in stream.unheard:
            raise ValueError(f"a delta for subject {subject.number} before its snapshot")
        else:
            delta = message.delta
            upserts = entries_of(delta.upserts)
            deletes = frozenset(entry_key(entry) for entry in delta.deletes)
            state = apply_delta(
                subject.wanted,
                ingress=default_of(delta.ingress),
                egress=default_of(delta.egress),
                upserts=upserts,
                deletes=deletes,
                revision=message.revision.policy,
            )
            subject.want(state, upserts.keys() | deletes, whole=is_whole(delta.transition))
        stream.unheard.discard(subject.number)
        waiting = self._heard.pop(subject.number, [])
        for future in waiting:
            if not future.done():
                future.set_result(None)
        # A subject that is being subscribed to is realized by whoever waits for it, in his own trace.
        if subject.realized is not None or not waiting:
            self._regenerate(subject, message)
        if kind == "snapshot":
            self._acknowledge()

    def _take_prefixes(self, update: pb.PrefixUpdate, trace: types_pb2.TraceContext | None = None) -> None:
        if trace is None or not trace.traceparent:
            self._change_prefixes(update)
            return
        parent = remote_context(trace.traceparent, trace.tracestate)
        with span(names.BPF_MAPS_SYNC, parent=parent) as current:
            self._change_prefixes(update)
            current.set_attribute(names.ADDS, len(update.upserts))
            current.set_attribute(names.DELETES, len(update.deletes))

    def _change_prefixes(self, update: pb.PrefixUpdate) -> None:
        if self._prefixes is None:
            return
        changed = self._prefixes.take(
            map(prefix_of, update.upserts), map(cidr_of, update.deletes), whole=update.whole
        )
        if changed:
            self._judge_again()
        if self._prefixes.problem:
            self._schedule_retry()
        self._acknowledge()

    def _release_prefixes(self) -> None:
        """What is sent before prefixes is in force: they begin to take effect."""
        if self._prefixes is None or not self._prefixes.due:
            return
        if self._prefixes.release():
            self._judge_again()
        if self._prefixes.problem:
            self._schedule_retry()

    def _judge_again(self) -> None:
        """Flows do not remember which prefix held an address; where that counts they are judged anew."""
        for subject in self._table:
            if subject.realized is None or not subject.realized.shape.by_address:
                continue
            subject.judge_again = True
            try:
                self._table.realize(subject)
            except DatapathError as problem:
                self._schedule_retry()
                self._changed(subject)
                _log.error("policy.realize_failed", subject=subject.number, error=str(problem))

    def _learn_rules(self, rules: Iterable[pb.RuleRef]) -> None:
        self.rules.update((rule.cookie, rule_name(rule)) for rule in rules)
        if len(self.rules) > self._rules_limit:
            states = [subject.wanted for subject in self._table if subject.wanted is not None]
            used = {value.cookie for state in states for value in state.entries.values()}
            self.rules = {cookie: name for cookie, name in self.rules.items() if cookie in used}
            self._rules_limit = max(_RULES, 2 * len(self.rules))

    def _regenerate(self, subject: Subject, message: pb.SubscribeResponse) -> None:
        trace = message.trace
        parent = remote_context(trace.traceparent, trace.tracestate) if trace.traceparent else None
        try:
            self._regenerate_all(subject, (Cause.POLICY,), message.revision.policy, parent)
        except DatapathError as problem:
            _log.error("policy.realize_failed", subject=subject.number, error=str(problem))

    def _regenerate_all(
        self, subject: Subject, causes: tuple[Cause, ...], revision: int, parent: Context | None
    ) -> None:
        """All endpoints of a subject at once: they share its entries."""
        users = subject.users - {HOST_USER} or subject.users
        with self._histories.recorded(
            users, Level.POLICY, causes, identity=subject.key.identity, parent=parent
        ) as current:
            current.set_attribute(names.POLICY_REVISION, revision)
            with measure_points.regenerating("policy", "policy"):
                self.realize(subject)
            with span(names.ENDPOINT_REALIZED):
                pass

    def _acknowledge(self) -> None:
        stream = self._stream
        if stream is None or stream.unheard:
            return
        failed = self._table.failed()
        if not failed:
            self._release_prefixes()
            failed = self._table.failed()
        if stream.progress is None:
            return
        if failed:
            numbers = [subject.number for subject in failed]
            problem = f"subject {failed[0].number}: {failed[0].error}"
            self._send(ack_message(self._acknowledged, problem, numbers))
            return
        if self.prefix_problem:
            self._send(ack_message(self._acknowledged, f"prefixes: {self.prefix_problem}"))
            return
        revision, stream.progress = stream.progress, None
        self._acknowledged = revision
        self._send(ack_message(revision))
        self.state.in_force(revision.policy)
        self.policy_revision.set(revision.policy)
        self.identity_revision.set(revision.identity)

    def _schedule_retry(self) -> None:
        if self._retry is None or self._retry.done():
            self._retry = asyncio.create_task(self._retry_failed())

    def _behind(self) -> bool:
        return bool(self._table.failed() or self.prefix_problem)

    async def _retry_failed(self) -> None:
        backoff = Backoff(first=0.2, most=30.0)
        while self._behind():
            delay = backoff.next()
            for subject in self._table.failed():
                for number in subject.users:
                    self._histories.retried_at(number, time.time() + delay)
            await asyncio.sleep(delay)
            if self._prefixes is not None and self._prefixes.retry():
                self._judge_again()
            for subject in self._table.failed():
                revision = subject.wanted.revision if subject.wanted is not None else 0
                try:
                    # In a trace of its own, not in that of whoever met with the failure.
                    self._regenerate_all(subject, (Cause.POLICY, Cause.RETRY), revision, Context())
                except DatapathError as problem:
                    _log.warning("policy.retry_failed", subject=subject.number, error=str(problem))
            if not self._behind():
                # Prefixes that waited may meet with a failure of their own.
                self._acknowledge()


async def _drain(queue: asyncio.Queue[pb.SubscribeRequest]) -> AsyncIterator[pb.SubscribeRequest]:
    while True:
        yield await queue.get()
