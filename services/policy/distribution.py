# SPDX-License-Identifier: Apache-2.0
"""From changes to streams: the engine's deltas go to every node that watches the subject.

Everything here is synchronous and runs on one event loop, so that a change is resolved once and reaches all
streams in the order in which it happened. Nothing is sent before the identities have been seen as a whole
once: a snapshot resolved against half of them would take away what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from services.chassis.errors import FimbriaError
from services.chassis.telemetry import TraceContext
from services.policy import problems
from services.policy.declared_ports import DeclaredPorts
from services.policy.engine import (
    Engine,
    Event,
    IdentityDelete,
    IdentityPut,
    PortsPut,
    Subject,
    SubjectAdd,
    SubjectChange,
    SubjectRemove,
)
from services.policy.entries import SubjectPolicy
from services.policy.in_force import InForce, Steps
from services.policy.prefixes import PrefixUse
from services.policy.rules import PolicyRef
from services.policy.selector import Labels
from services.policy.stored import Gone, StoredPolicy
from services.policy.stream import (
    Message,
    PrefixUpdate,
    Progress,
    Revision,
    RuleName,
    Shared,
    SharedPrefixes,
    Subscription,
    Update,
    Watch,
)

__all__ = [
    "Distributor",
    "Message",
    "PrefixUpdate",
    "Progress",
    "Revision",
    "RuleName",
    "Shared",
    "SharedPrefixes",
    "Subscription",
    "Update",
    "Watch",
]


class Distributor:
    """The live state of the service: policies, identities, subjects, and the streams that hear of them."""

    def __init__(
        self,
        policies: Iterable[StoredPolicy] = (),
        revision: int = 0,
        ports: DeclaredPorts | None = None,
        advanced: Callable[[int], None] = lambda revision: None,
    ) -> None:
        self.engine = Engine()
        self._in_force = InForce()
        self._rules: dict[int, RuleName] = {}
        self._cookies: dict[PolicyRef, frozenset[int]] = {}
        self.revision = Revision(policy=revision)
        self.identities_known = False
        self._subscriptions: dict[str, Subscription] = {}
        self._watchers: dict[Subject, dict[tuple[Subscription, int], None]] = {}
        self._elsewhere: Mapping[str, frozenset[Subject]] = {}
        self._left: dict[str, frozenset[Subject]] = {}
        self._advanced = advanced
        self.ports = ports or DeclaredPorts()
        advanced(revision)
        self._take(self._in_force.take(self._named(policies)), TraceContext())
        self._follow_ports(self.ports.identities())

    # -- what is in force

    @property
    def policies(self) -> Mapping[PolicyRef, StoredPolicy]:
        """The policies, bound to the groups that they name."""
        return self._in_force.policies

    @property
    def groups(self) -> Mapping[str, StoredPolicy]:
        """The CIDR groups by name."""
        return self._in_force.groups

    def documents(self) -> Iterator[PolicyRef]:
        """The names of all policies and groups."""
        yield from self._in_force.policies
        yield from (stored.ref for stored in self._in_force.groups.values())

    def number_of_prefix(self, cidr: str) -> int | None:
        """The number of a prefix that stands in some policy or group."""
        return self._in_force.number_of(cidr)

    def prefix_numbers(self) -> dict[str, int]:
        """The numbers of all prefixes that stand in some policy or group."""
        return self._in_force.numbers()

    def prefix_of_number(self, number: int) -> str | None:
        """The prefix that has this number in some policy or group."""
        return self._in_force.prefix_of(number)

    # -- what happens to policies and identities

    def take_policies(
        self, changes: Sequence[StoredPolicy | Gone], revision: int, trace: TraceContext
    ) -> None:
        """Policies and groups that are new or changed, or that are gone, up to a revision."""
        known = [(change.ref, self._cookies.get(change.ref, frozenset())) for change in changes]
        steps = self._in_force.take(self._named(changes))
        moved = revision != self.revision.policy
        self.revision = Revision(revision, self.revision.identity)
        self._advanced(revision)
        acted = self._take(steps, trace)
        # Rules that are gone are named until nobody can be told of them.
        for ref, cookies in known:
            for cookie in cookies - self._cookies.get(ref, frozenset()):
                self._rules.pop(cookie, None)
        if moved or acted:
            self._tell_known(trace)

    def take_identities(
        self, changes: Iterable[tuple[int, Labels | None]], revision: int, trace: TraceContext
    ) -> None:
        """Identities with their labels, or None for those that are gone, up to a revision."""
        events: list[Event] = []
        for number, labels in changes:
            if labels is None:
                # The number may come back as another identity, which does not declare these ports.
                self.ports.forget_identity(number)
                events += (IdentityDelete(number), PortsPut(number, self.ports.of(number)))
            else:
                events.append(IdentityPut(number, labels))
        self._advance(events, Revision(self.revision.policy, revision), trace)

    def take_all_identities(self, identities: dict[int, Labels], revision: int) -> None:
        """The whole set of identities, as it is at a revision; others are gone. From now on streams are
        served.
        """
        gone = [(number, None) for number in self.engine.identities() if number not in identities]
        first, self.identities_known = not self.identities_known, True
        before = self.revision
        self.take_identities([*identities.items(), *gone], revision, TraceContext())
        if first and self.revision == before:
            # Nobody has an identity yet: what streams have waited for is this alone.
            self._tell(TraceContext())

    # -- what nodes ask for

    def subscribe(self, node: str) -> Subscription:
        """Open a node's stream; an older one of the same node ends with Aborted (SUBSCRIPTION_REPLACED)."""
        older = self._subscriptions.pop(node, None)
        if older is not None:
            older.end(problems.subscription_replaced(node))
            self._drop_watches(older)
        self._left.pop(node, None)
        subscription = self._subscriptions[node] = Subscription(node)
        if self.identities_known:
            self._greet(subscription)
            subscription.send(Progress(self.revision, TraceContext()))
        return subscription

    def unsubscribe(self, subscription: Subscription) -> bool:
        """Close a stream; True if it was its node's present one."""
        subscription.end()
        watched = self.watched_by(subscription.node)
        self._drop_watches(subscription)
        if self._subscriptions.get(subscription.node) is not subscription:
            return False
        del self._subscriptions[subscription.node]
        # Its pods are still there, and the store has not heard of them yet.
        self._left[subscription.node] = watched
        self._elsewhere = {**self._elsewhere, subscription.node: watched}
        return True

    def watch(self, subscription: Subscription, watch: Watch) -> None:
        """Tell a subject's state from now on; watching it again under the same number tells all of it
        again.
        """
        if self._subscriptions.get(subscription.node) is not subscription:
            watch.answered()
            return
        former = subscription.watched.get(watch.number)
        subscription.watched[watch.number] = watch
        if former is not None:
            self._stop(subscription, former, keep=watch)
            self._withdraw(subscription, former)
        # Pending before anything follows from it: a snapshot comes first, and deltas only after it.
        subscription.pending[watch.number] = watch
        subscribers = self._watchers.setdefault(watch.subject, {})
        subscribers[subscription, watch.number] = None
        if len(subscribers) == 1:
            self.engine.apply([SubjectAdd(watch.subject)])
        self._follow_ports(self.ports.declare(subscription.node, watch.subject), watch.trace)
        self._answer(subscription, watch)

    def unwatch(self, subscription: Subscription, number: int) -> None:
        watch = subscription.watched.pop(number, None)
        if watch is not None:
            self._stop(subscription, watch)
            self._withdraw(subscription, watch)

    def acknowledged(self, subscription: Subscription) -> None:
        """The node has realized what it asked for, so that it has asked for all that it has."""
        if self._subscriptions.get(subscription.node) is subscription:
            self._follow_ports(self.ports.settle(subscription.node))

    def forget(self, node: str) -> None:
        """The node has left the cluster: the ports of its pods are no longer known."""
        self._left.pop(node, None)
        self._elsewhere = {name: there for name, there in self._elsewhere.items() if name != node}
        self._follow_ports(self.ports.forget_node(node))

    def end(self, node: str, reason: FimbriaError) -> None:
        """End a node's stream with an error."""
        subscription = self._subscriptions.get(node)
        if subscription is not None:
            subscription.end(reason)

    def take_ports(self, node: str, subjects: Iterable[Subject]) -> None:
        """What pods of a node declare that is subscribed to another replica, or to none."""
        self._follow_ports(self.ports.replace(node, subjects))

    # -- who watches what

    def watched_elsewhere(self, watched: Mapping[str, frozenset[Subject]]) -> None:
        """What nodes watch that are subscribed to another replica, or to none, as far as it is known."""
        self._elsewhere = {**watched, **self._left}

    def watched_is_stored(self, node: str) -> None:
        """What a node watched when it left is known by way of the store from now on."""
        self._left.pop(node, None)

    def watched_by(self, node: str) -> frozenset[Subject]:
        """What a node watches."""
        subscription = self._subscriptions.get(node)
        if subscription is None:
            return self._elsewhere.get(node, frozenset())
        return frozenset(watch.subject for watch in subscription.watched.values())

    def watchers(self, subject: Subject) -> tuple[str, ...]:
        """The nodes that watch a subject, by name."""
        here = {subscription.node for subscription, _ in self._watchers.get(subject, ())}
        away = {
            name
            for name, watched in self._elsewhere.items()
            if subject in watched and name not in self._subscriptions
        }
        return tuple(sorted(here | away))

    def watched_subjects(self) -> Iterable[Subject]:
        """Every subject that some node watches, each once."""
        found = dict.fromkeys(self._watchers)
        for name, watched in self._elsewhere.items():
            if name not in self._subscriptions:
                found.update(dict.fromkeys(watched))
        return found

    # -- inside

    def _named(self, changes: Iterable[StoredPolicy | Gone]) -> Iterator[StoredPolicy | Gone]:
        """Take the names of the rules over, on the way."""
        for change in changes:
            if isinstance(change, Gone):
                self._cookies.pop(change.ref, None)
            else:
                cookies, lines = change.bound.cookies, change.bound.policy.lines
                self._cookies[change.ref] = frozenset(cookies.values())
                for rule in change.bound.policy.rules():
                    self._rules[cookies[rule.path]] = RuleName(
                        change.ref,
                        rule.path,
                        rule.deny,
                        rule.passes,
                        change.source,
                        lines.get(rule.path, 0),
                    )
            yield change

    def _take(self, steps: Steps, trace: TraceContext) -> bool:
        """Let the steps take effect one after the other; True if there were any."""
        self._deliver(self.engine.apply(steps.known), trace)
        self._tell_prefixes(steps.begin, trace)
        self._deliver(self.engine.apply(steps.policies), trace)
        self._tell_prefixes(steps.cease, trace)
        self._deliver(self.engine.apply(steps.forgotten), trace)
        return bool(steps.known or steps.policies or steps.forgotten)

    def _tell_prefixes(self, prefixes: tuple[tuple[int, PrefixUse], ...], trace: TraceContext) -> None:
        if not prefixes or not self.identities_known:
            return
        shared = SharedPrefixes(prefixes)
        for subscription in self._subscriptions.values():
            subscription.send(PrefixUpdate(shared, self.revision, trace))

    def _greet(self, subscription: Subscription) -> None:
        if not subscription.greeted:
            subscription.greeted = True
            whole = SharedPrefixes(tuple(self.engine.prefixes.items()), whole=True)
            subscription.send(PrefixUpdate(whole, self.revision, TraceContext()))

    def _share(self, subject: Subject, content: SubjectPolicy | SubjectChange) -> Shared:
        values = (
            content.entries.values()
            if isinstance(content, SubjectPolicy)
            else (value for _, value in content.upserts)
        )
        cookies = {value.cookie for value in values if value.cookie}
        return Shared(subject, content, {cookie: self._rules[cookie] for cookie in sorted(cookies)})

    def _advance(self, events: list[Event], revision: Revision, trace: TraceContext) -> None:
        changes = self.engine.apply(events)
        if revision == self.revision and not changes:
            return
        self.revision = revision
        self._deliver(changes, trace)
        self._tell_known(trace)

    def _tell_known(self, trace: TraceContext) -> None:
        if self.identities_known:
            self._tell(trace)

    def _tell(self, trace: TraceContext) -> None:
        for subscription in self._subscriptions.values():
            self._greet(subscription)
            for watch in list(subscription.pending.values()):
                self._answer(subscription, watch)
            subscription.send(Progress(self.revision, trace))

    def _deliver(self, changes: Iterable[SubjectChange], trace: TraceContext) -> None:
        if not self.identities_known:
            return
        for change in changes:
            content = self.engine.state(change.subject) if change.reset else change
            if content is None:
                continue
            shared = self._share(change.subject, content)
            for subscription, number in self._watchers.get(change.subject, ()):
                # A subject that has not had its snapshot gets it from _answer.
                if number not in subscription.pending:
                    subscription.send(Update(number, shared, self.revision, trace))

    def _answer(self, subscription: Subscription, watch: Watch) -> None:
        """Send a subject's first snapshot as soon as its identity is known."""
        if not self.identities_known or self.revision.identity < watch.identity_revision:
            return
        state = self.engine.state(watch.subject)
        if state is None:
            return
        del subscription.pending[watch.number]
        subscription.send(Update(watch.number, self._share(watch.subject, state), self.revision, watch.trace))
        watch.answered()

    def _stop(self, subscription: Subscription, watch: Watch, keep: Watch | None = None) -> None:
        if subscription.pending.pop(watch.number, None) is not None:
            watch.answered()
        if keep is not None and keep.subject == watch.subject:
            return
        subscribers = self._watchers[watch.subject]
        subscribers.pop((subscription, watch.number), None)
        if not subscribers:
            del self._watchers[watch.subject]
            self.engine.apply([SubjectRemove(watch.subject)])

    def _withdraw(self, subscription: Subscription, watch: Watch) -> None:
        if all(other.subject != watch.subject for other in subscription.watched.values()):
            self._follow_ports(self.ports.withdraw(subscription.node, watch.subject))

    def _follow_ports(self, numbers: Iterable[int], trace: TraceContext | None = None) -> None:
        """Ports of these identities may have changed, and with them egress rules of other subjects."""
        events = [PortsPut(number, self.ports.of(number)) for number in numbers]
        if events:
            self._deliver(self.engine.apply(events), trace or TraceContext())

    def _drop_watches(self, subscription: Subscription) -> None:
        watches = list(subscription.watched.values())
        subscription.watched.clear()
        for watch in watches:
            self._stop(subscription, watch)
        # A node that is away still has its pods: what they declare counts until it says otherwise.
        self.ports.disconnect(subscription.node)
