# SPDX-License-Identifier: Apache-2.0
"""The questions about policies that the service answers; nothing here changes anything."""

from __future__ import annotations

import asyncio
import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from itertools import accumulate
from typing import Any, TypeAlias

import grpc
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.paging import Page, page
from services.policy import problems
from services.policy.convert import (
    applied_message,
    read_key,
    read_labels,
    read_ports,
    read_protocol,
    revision_message,
)
from services.policy.diff import Change, Cluster, World, diff, node_labels
from services.policy.diff_peers import Universe
from services.policy.diff_world import Policies, changed, number_prefixes, present
from services.policy.distribution import Distributor, Revision
from services.policy.enforcement import Enforcement
from services.policy.engine import Subject
from services.policy.explain import End, Explainer, Verdict, end_outside
from services.policy.manifest import Manifest, ManifestError, load_stored, parse_manifests
from services.policy.prefixes import PrefixUse
from services.policy.questions_messages import change_message, status_message, verdict_message
from services.policy.remedies import remedies
from services.policy.rules import Policy, PolicyRef, Protocol
from services.policy.selector import Labels
from services.policy.status import Situation, by_name
from services.policy.store import PolicyStore
from services.policy.stored import StoredPolicy

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Numbers for label sets that no identity stands for; beyond what identities can have.
_SENDER, _RECEIVER = 1 << 24, (1 << 24) + 1
MAX_CHANGES = 1000
# As many peers as an answer names at most, more or less: clients take messages of 4 MiB.
MAX_NAMED = 20_000
# And as many subjects on nodes, of more policies than one.
MAX_TOLD = 10_000
# What a manifest has that names a CIDR group; few do, and the others need not be read again.
_NAMES_GROUP = re.compile("cidr_?group", re.IGNORECASE)
MAX_ICMP_TYPE = 255


class QuestionsApi(policy_pb2_grpc.PolicyServiceServicer):
    """The part of fimbria.policy.v1.PolicyService that asks."""

    def __init__(self, store: PolicyStore, distributor: Distributor, enforcement: Enforcement) -> None:
        self._store = store
        self._distributor = distributor
        self._enforcement = enforcement
        self._universe: tuple[Revision, Universe] | None = None

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        distributor = self._distributor
        prefixes = distributor.engine.prefixes
        # "from" is a keyword of Python.
        ends = getattr(request, "from"), request.to
        connection = self._connection(ends, request.protocol, request.port, "", prefixes)
        held, revision = present(distributor.policies), distributor.revision
        explainer = Explainer(held.bound.values(), dict(prefixes))
        # With thousands of policies it takes a moment that streams would have to wait for.
        egress, ingress = await asyncio.to_thread(explainer.explain, *connection)
        return pb.ExplainResponse(
            allowed=egress.allowed and ingress.allowed,
            egress=verdict_message(egress, held.sources),
            ingress=verdict_message(ingress, held.sources),
            revision=revision_message(revision),
            remedies=remedies(egress, ingress, *connection),
        )

    async def DiffPolicies(
        self, request: pb.DiffPoliciesRequest, context: Context
    ) -> pb.DiffPoliciesResponse:
        distributor = self._distributor
        if not request.manifests and not request.deletes:
            raise problems.field_invalid("manifests", "", "manifests to apply, or policies to delete")
        deletes = [read_key(key, f"deletes[{index}]") for index, key in enumerate(request.deletes)]
        manifests = await _parse(request.manifests) if request.manifests else []
        if not distributor.identities_known:
            raise problems.identities_unknown()
        planned = await self._store.apply(manifests, dry_run=True)
        universe = await self._known()
        before = present(distributor.policies)
        after = changed(
            distributor.policies,
            distributor.groups,
            deletes,
            [applied.stored for applied in planned.policies],
            _stated,
        )
        prefixes = number_prefixes(after.bound.values(), distributor.number_of_prefix)
        asked = self._connections(request, prefixes)
        engine, revision = distributor.engine, distributor.revision
        cluster = Cluster(
            universe,
            {number: engine.ports_of(number) for number in universe.identities if engine.ports_of(number)},
            tuple(distributor.watched_subjects()),
            {use.cidr: number for number, use in (*prefixes.items(), *engine.prefixes.items())},
        )
        answer, subjects = await asyncio.to_thread(
            _diff,
            pb.DiffPoliciesResponse(
                policies=map(applied_message, planned.policies), revision=revision_message(revision)
            ),
            before,
            after,
            cluster,
            (dict(engine.prefixes), prefixes),
            asked,
            request.max_changes or MAX_CHANGES,
        )
        for change, subject in zip(answer.changes, subjects, strict=True):
            change.nodes = len(distributor.watchers(subject))
        return answer

    async def ListPolicyStatus(
        self, request: pb.ListPolicyStatusRequest, context: Context
    ) -> pb.ListPolicyStatusResponse:
        distributor = self._distributor
        await self._enforcement.refresh()
        documents = [*distributor.policies.values(), *distributor.groups.values()]
        scope = "status"
        if request.HasField("key"):
            ref = read_key(request.key, "key")
            documents = [stored for stored in documents if stored.ref == ref]
            scope += f"\0{ref}"
            if not documents:
                raise problems.policy_not_found(ref)
        listed = by_name(documents)

        def paged(size: int) -> Page[StoredPolicy]:
            return page(
                listed,
                key=lambda stored: (stored.ref.kind, stored.ref.namespace, stored.ref.name),
                page_size=size,
                page_token=request.page_token,
                scope=scope,
            )

        found = paged(request.page_size)
        universe = await self._known()
        situation = Situation(
            dict(distributor.policies),
            dict(distributor.groups),
            _stated,
            universe,
            self._watchers(),
            {node.name: node for node in self._enforcement.nodes()},
            time.time_ns(),
        )
        revision = distributor.revision
        statuses = await asyncio.to_thread(lambda: [situation.status(stored) for stored in found.items])
        told = list(accumulate(sum(len(subject.nodes) for subject in each.subjects) for each in statuses))
        fitting = max(bisect_right(told, MAX_TOLD), 1)
        if fitting < len(statuses):
            found = paged(fitting)
        return pb.ListPolicyStatusResponse(
            policies=map(status_message, statuses[:fitting]),
            next_page_token=found.next_page_token,
            revision=revision_message(revision),
        )

    # -- the ends of connections

    def _connection(
        self,
        ends: tuple[pb.Peer, pb.Peer],
        protocol: types_pb2.Protocol.ValueType,
        port: int,
        field: str,
        prefixes: Mapping[int, PrefixUse],
    ) -> tuple[End, End, Protocol, int]:
        """Raises InvalidArgument, NotFound (IDENTITY_NOT_FOUND), Unavailable (IDENTITIES_UNKNOWN)."""
        if protocol == types_pb2.PROTOCOL_UNSPECIFIED:
            raise problems.field_invalid(f"{field}protocol", 0, "a protocol")
        known = read_protocol(protocol)
        if known in (Protocol.ICMP, Protocol.ICMPV6):
            if port > MAX_ICMP_TYPE:
                raise problems.field_invalid(f"{field}port", port, f"an ICMP type from 0 to {MAX_ICMP_TYPE}")
        elif not port:
            raise problems.field_invalid(f"{field}port", port, "a port from 1 to 65535")
        sender = self._end(ends[0], f"{field}from", _SENDER, prefixes)
        receiver = self._end(ends[1], f"{field}to", _RECEIVER, prefixes)
        if sender.labels == receiver.labels:
            receiver = End(sender.identity, receiver.labels, receiver.ports, receiver.address, receiver.given)
        return sender, receiver, known, port

    def _end(self, peer: pb.Peer, field: str, spare: int, prefixes: Mapping[int, PrefixUse]) -> End:
        """Raises InvalidArgument, NotFound (IDENTITY_NOT_FOUND), Unavailable (IDENTITIES_UNKNOWN)."""
        engine = self._distributor.engine
        declared = frozenset(read_ports(peer.named_ports))
        address = _address(peer.address, f"{field}.address") if peer.address else None
        if peer.labels:
            if peer.identity:
                raise problems.field_invalid(
                    f"{field}.identity", peer.identity, "either labels or an identity"
                )
            labels = Labels(read_labels(peer.labels, field))
            number = engine.number_of(labels)
            known = engine.ports_of(number) if number is not None else frozenset()
            return End(number if number is not None else spare, labels, declared or known, address)
        if not peer.identity:
            if address is not None:
                return end_outside(prefixes, address)
            raise problems.field_invalid(field, "", "labels, an identity or an address")
        found = engine.labels(peer.identity)
        if found is None:
            if not self._distributor.identities_known:
                raise problems.identities_unknown()
            raise problems.identity_not_found(peer.identity, f"{field}.identity")
        return End(peer.identity, found, declared or engine.ports_of(peer.identity), address)

    def _connections(
        self, request: pb.DiffPoliciesRequest, prefixes: Mapping[int, PrefixUse]
    ) -> list[tuple[tuple[End, End, Protocol, int], tuple[End, End, Protocol, int]]]:
        """Each given connection as it is before the change, and after it: new prefixes mean others."""
        held = self._distributor.engine.prefixes
        found = []
        for index, item in enumerate(request.connections):
            ends = getattr(item, "from"), item.to
            field = f"connections[{index}]."
            found.append(
                (
                    self._connection(ends, item.protocol, item.port, field, held),
                    self._connection(ends, item.protocol, item.port, field, prefixes),
                )
            )
        return found

    # -- what there is

    async def _known(self) -> Universe:
        """The identities there are, indexed once for each of their revisions."""
        engine, revision = self._distributor.engine, self._distributor.revision
        if self._universe is None or self._universe[0].identity != revision.identity:
            labels = {number: engine.labels(number) for number in engine.identities()}
            found = {number: held for number, held in labels.items() if held is not None}
            self._universe = revision, await asyncio.to_thread(Universe, found)
        return self._universe[1]

    def _watchers(self) -> dict[Subject, tuple[str, ...]]:
        """The nodes of each subject, by name."""
        found: dict[Subject, list[str]] = {}
        for node in self._enforcement.nodes():
            for subject in self._distributor.watched_by(node.name):
                found.setdefault(subject, []).append(node.name)
        return {subject: tuple(names) for subject, names in found.items()}


def _diff(
    answer: pb.DiffPoliciesResponse,
    before: Policies,
    after: Policies,
    cluster: Cluster,
    prefixes: tuple[Mapping[int, PrefixUse], Mapping[int, PrefixUse]],
    asked: Iterable[tuple[tuple[End, End, Protocol, int], tuple[End, End, Protocol, int]]],
    limit: int,
) -> tuple[pb.DiffPoliciesResponse, list[Subject]]:
    """The answer with the changes filled in, and the subject of each."""
    changes = diff(World(before.bound), World(after.bound), cluster)
    subjects: list[Subject] = []
    named = 0
    for change in changes:
        named += len(change.peers)
        if len(subjects) == limit or (subjects and named > MAX_NAMED):
            answer.omitted = 1 + sum(1 for _ in changes)
            break
        answer.changes.append(change_message(change, _labels(change, cluster.universe)))
        subjects.append(change.subject)
    old, new = Explainer(before.bound.values(), prefixes[0]), Explainer(after.bound.values(), prefixes[1])
    touched = _Touched(before, after)
    told: dict[object, tuple[bool, tuple[Verdict, Verdict]]] = {}
    for index, (was, would) in enumerate(asked):
        if not touched.concerns(was[0], would[0]) and not touched.concerns(was[1], would[1]):
            continue
        if would not in told:
            told[would] = all(verdict.allowed for verdict in old.explain(*was)), new.explain(*would)
        allowed_before, (egress, ingress) = told[would]
        allowed_after = egress.allowed and ingress.allowed
        if allowed_before != allowed_after:
            answer.connections.add(
                index=index,
                allowed_before=allowed_before,
                allowed_after=allowed_after,
                egress=verdict_message(egress, after.sources),
                ingress=verdict_message(ingress, after.sources),
            )
    return answer, subjects


def _labels(change: Change, universe: Universe) -> tuple[str, ...]:
    subject = change.subject
    labels = node_labels(subject) if subject.is_node else universe.identities[subject.identity]
    return tuple(sorted(labels.strings))


class _Touched:
    """Which ends of connections a change may concern: whom a changed policy selects, and who is another."""

    def __init__(self, before: Policies, after: Policies) -> None:
        self._specs = [
            spec
            for ref in {*before.bound, *after.bound}
            if _policy(before, ref) != _policy(after, ref)
            for policy in (_policy(before, ref), _policy(after, ref))
            if policy is not None
            for spec in policy.specs
        ]
        self._known: dict[Labels, bool] = {}

    def concerns(self, was: End, would: End) -> bool:
        if was.identity != would.identity:
            return True
        if was.labels not in self._known:
            self._known[was.labels] = any(spec.selects(was.labels) for spec in self._specs)
        return self._known[was.labels]


def _policy(policies: Policies, ref: PolicyRef) -> Policy | None:
    bound = policies.bound.get(ref)
    return bound.policy if bound is not None else None


def _address(text: str, field: str) -> str:
    """In canonical text. Raises InvalidArgument."""
    try:
        if "%" in text:
            raise ValueError(text)
        return str(ip_address(text))
    except ValueError:
        raise problems.field_invalid(field, text, "an IPv4 or IPv6 address") from None


def _stated(stored: StoredPolicy) -> Policy:
    """A policy as its manifest has it, with the groups that it names."""
    if not _NAMES_GROUP.search(stored.manifest):
        return stored.bound.policy
    return load_stored(stored.manifest)


async def _parse(text: str) -> list[Manifest]:
    try:
        return await asyncio.to_thread(parse_manifests, text)
    except ManifestError as error:
        raise problems.manifests_refused(error, done="nothing would be applied") from None
