# SPDX-License-Identifier: Apache-2.0
"""Policies in SQL. Every change of a policy is one event of the policy feed, in the same transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from sqlalchemy import bindparam, delete, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.chassis.paging import Page, PageRequest
from services.policy import problems
from services.policy.groups import groups_named, literal_prefixes
from services.policy.manifest import CIDR_GROUP, Manifest
from services.policy.resolve import BoundPolicy
from services.policy.rules import PolicyRef
from services.policy.schema import group_changes, policies, rules
from services.policy.stored import (
    Applied,
    AppliedPolicy,
    Outcome,
    StoredPolicy,
    encode_change,
    encode_deletion,
    feed_key,
    read_document,
    remember,
)

__all__ = ["FEED", "Applied", "AppliedPolicy", "Outcome", "PolicyStore", "StoredPolicy"]

FEED = "policies"

_KEY = (policies.c.kind, policies.c.namespace, policies.c.name)
_RULE_KEY = (rules.c.kind, rules.c.namespace, rules.c.name)


def _at(columns: tuple[Any, ...]) -> Any:
    kind, namespace, name = columns
    return (
        (kind == bindparam("of_kind"))
        & (namespace == bindparam("of_namespace"))
        & (name == bindparam("of_name"))
    )


_POLICY = select(policies).where(_at(_KEY))
_POLICIES = select(policies).order_by(*_KEY)
_RULES_OF = select(rules.c.path, rules.c.cookie).where(_at(_RULE_KEY))
_RULES = select(rules)
_ADD_RULE = insert(rules).returning(rules.c.cookie)
_DROP_RULE = delete(rules).where(rules.c.cookie == bindparam("of_cookie"))
_ADD = insert(policies)
_CHANGE = (
    update(policies)
    .where(_at(_KEY))
    .values(
        manifest=bindparam("to_manifest"),
        updated_ns=bindparam("to_time"),
        revision=bindparam("to_revision"),
        prefixes=bindparam("to_prefixes"),
        lines=bindparam("to_lines"),
        source=bindparam("to_source"),
    )
)
_DROP = delete(policies).where(_at(_KEY))
_GROUPS = select(policies.c.name).where(policies.c.kind == CIDR_GROUP)
_GROUP_CHANGES = select(group_changes)
_FORGET_CHANGE = delete(group_changes).where(group_changes.c.name == bindparam("of_name"))
_NOTE_CHANGE = insert(group_changes)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What applying a manifest would do. `stored` is as it would be, with the revision of before and the
    cookie 0 for new rules; `retired` are the cookies that would go. `moved`: it says what it said, from
    another file or other lines.
    """

    stored: StoredPolicy
    outcome: Outcome
    retired: tuple[int, ...] = ()
    moved: bool = False


class PolicyStore:
    """The policies of the cluster. `clock` returns Unix time in nanoseconds."""

    def __init__(self, database: Database, feed: Feed, clock: Callable[[], int]) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock

    async def load(self) -> tuple[list[StoredPolicy], int]:
        """Every policy, and the revision of the feed at which they were read."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_POLICIES)).all()
            found = await _with_rules(connection, rows, everything=True)
            return found, await self._feed.revision_at(connection)

    async def apply(
        self,
        manifests: Sequence[Manifest],
        numbers: Mapping[str, int] | None = None,
        *,
        source: str = "",
        trace: str = "",
        dry_run: bool = False,
    ) -> Applied:
        """Add or change all of them in one transaction. What is there as given keeps its revision.

        `numbers` has those of all prefixes that stand in the manifests. With `dry_run` nothing is stored;
        rules that would be new have the cookie 0, and `numbers` may lack some.
        """
        now, known = self._clock(), numbers or {}

        async def operation(connection: AsyncConnection) -> Applied:
            plans = [await _plan(connection, manifest, known, source, now) for manifest in manifests]
            for manifest in manifests:
                missing = [c for c in literal_prefixes(manifest.policy, manifest.group) if c not in known]
                if missing:
                    raise ValueError(f"{manifest.policy.ref} names {missing[0]}, which has no number")
            plans = [await _number_rules(connection, plan) for plan in plans]
            plans = await self._write(connection, plans, trace)
            return await self._applied(connection, plans)

        if not dry_run:
            for manifest in manifests:
                remember(manifest)
            return await self._database.write(operation)
        async with self._database.read() as connection:
            planned = [await _plan(connection, manifest, known, source, now) for manifest in manifests]
            return await self._applied(connection, planned)

    async def renumber(self, numbers: Mapping[str, int], *, trace: str = "") -> int:
        """Gives prefixes other numbers in all documents that name them, as one change; the revision that has
        them.
        """

        async def operation(connection: AsyncConnection) -> int:
            rows = (await connection.execute(_POLICIES)).all()
            plans = []
            for stored in await _with_rules(connection, rows, everything=True):
                prefixes = {cidr: numbers.get(cidr, number) for cidr, number in stored.prefixes.items()}
                if prefixes != stored.prefixes:
                    plans.append(_Plan(replace(stored, prefixes=prefixes), Outcome.CHANGED))
            await self._write(connection, plans, trace)
            return await self._feed.revision_at(connection)

        return await self._database.write(operation)

    async def delete(self, refs: Iterable[PolicyRef], *, trace: str = "") -> tuple[list[PolicyRef], int]:
        """Remove policies; those that are not there are passed over. Returns what is gone, and the
        revision.
        """

        async def operation(connection: AsyncConnection) -> tuple[list[PolicyRef], int]:
            gone = []
            for ref in refs:
                if (await connection.execute(_DROP, _of(ref))).rowcount:
                    gone.append(ref)
            if gone:
                events = [(feed_key(ref), encode_deletion(more=ref is not gone[-1]), True) for ref in gone]
                first = await self._feed.append_all(connection, events, trace) - len(events) + 1
                for revision, ref in enumerate(gone, start=first):
                    await _note_group(connection, ref, revision)
            return gone, await self._feed.revision_at(connection)

        return await self._database.write(operation)

    async def get(self, ref: PolicyRef) -> StoredPolicy:
        """Raises NotFound (POLICY_NOT_FOUND)."""
        async with self._database.read() as connection:
            found = await _read(connection, ref)
        if found is None:
            raise problems.policy_not_found(ref)
        return found

    async def page(self, namespace: str, request: PageRequest) -> tuple[Page[StoredPolicy], int]:
        """Policies by kind, namespace and name, and the revision at which they were read."""
        query = _POLICIES.limit(request.limit)
        if namespace:
            query = query.where(policies.c.namespace == namespace)
        if request.after is not None:
            query = query.where(tuple_(*_KEY) > tuple_(*request.after))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
            found = await _with_rules(connection, rows, everything=False)
            revision = await self._feed.revision_at(connection)
        return request.page(found, lambda p: (p.ref.kind, p.ref.namespace, p.ref.name)), revision

    async def _write(self, connection: AsyncConnection, plans: Sequence[_Plan], trace: str) -> list[_Plan]:
        """Store what has changed, as one bundle of events; the plans with the revisions that came of it."""
        writes = [plan for plan in plans if plan.moved or plan.outcome is not Outcome.UNCHANGED]
        if not writes:
            return list(plans)
        changes = await _group_changes(connection)
        events = [
            (
                feed_key(plan.stored.ref),
                encode_change(
                    plan.stored,
                    groups_changed=_effective(plan.stored, changes),
                    moved=plan.moved,
                    more=plan is not writes[-1],
                ),
                False,
            )
            for plan in writes
        ]
        first = await self._feed.append_all(connection, events, trace) - len(events) + 1
        written: dict[PolicyRef, _Plan] = {}
        for revision, plan in enumerate(writes, start=first):
            stored = plan.stored if plan.moved else replace(plan.stored, revision=revision)
            written[stored.ref] = replace(plan, stored=stored)
            await connection.execute(_CHANGE, {**_of(stored.ref), **_changed(stored)})
            if not plan.moved:
                await _note_group(connection, stored.ref, revision)
        return [written.get(plan.stored.ref, plan) for plan in plans]

    async def _applied(self, connection: AsyncConnection, plans: Sequence[_Plan]) -> Applied:
        """What the client is told: effective revisions and warnings count the whole bundle."""
        named = {name for plan in plans for name in groups_named(plan.stored.bound.policy)}
        there: set[str] = set()
        changes: Mapping[str, int] = {}
        if named:
            there = {plan.stored.ref.name for plan in plans if plan.stored.ref.kind == CIDR_GROUP}
            there.update((await connection.execute(_GROUPS)).scalars())
            changes = await _group_changes(connection)
        applied = []
        for plan in plans:
            missing = {
                name: paths
                for name, paths in groups_named(plan.stored.bound.policy).items()
                if name not in there
            }
            warnings = tuple(
                f"{', '.join(paths)}: there is no {CIDR_GROUP} {name}; it matches nobody until there is"
                for name, paths in missing.items()
            )
            stored = replace(plan.stored, effective_revision=_effective(plan.stored, changes))
            applied.append(AppliedPolicy(stored, plan.outcome, warnings))
        return Applied(tuple(applied), await self._feed.revision_at(connection))


def _named(ref: PolicyRef) -> dict[str, str]:
    return {"kind": ref.kind, "namespace": ref.namespace, "name": ref.name}


def _of(ref: PolicyRef) -> dict[str, Any]:
    return {f"of_{key}": value for key, value in _named(ref).items()}


async def _plan(
    connection: AsyncConnection, manifest: Manifest, numbers: Mapping[str, int], source: str, now: int
) -> _Plan:
    present = await _read(connection, manifest.policy.ref)
    policy, group = manifest.policy, manifest.group
    prefixes = {cidr: numbers[cidr] for cidr in literal_prefixes(policy, group) if cidr in numbers}
    if (
        present is not None
        and present.manifest == manifest.text
        and prefixes.keys() <= present.prefixes.keys()
    ):
        if present.source == source and present.bound.policy.lines == policy.lines:
            return _Plan(present, Outcome.UNCHANGED)
        moved = BoundPolicy(replace(present.bound.policy, lines=policy.lines), present.bound.cookies)
        return _Plan(replace(present, bound=moved, source=source), Outcome.UNCHANGED, moved=True)
    known = present.bound.cookies if present is not None else {}
    cookies = {rule.path: known.get(rule.path, 0) for rule in policy.rules()}
    revision = present.revision if present is not None else 0
    return _Plan(
        StoredPolicy(BoundPolicy(policy, cookies), manifest.text, revision, now, prefixes, source, group),
        Outcome.CHANGED if present is not None else Outcome.CREATED,
        tuple(cookie for path, cookie in known.items() if path not in cookies),
    )


async def _number_rules(connection: AsyncConnection, plan: _Plan) -> _Plan:
    """Give a number to each rule that has none yet, and make room for the policy where it is new."""
    if plan.outcome is Outcome.UNCHANGED:
        return plan
    ref = plan.stored.ref
    if plan.outcome is Outcome.CREATED:
        # The rules refer to the policy, so it comes first; its revision is known only after them.
        row = {"manifest": "", "updated_ns": 0, "revision": 0, "prefixes": "{}", "lines": "{}", "source": ""}
        await connection.execute(_ADD, {**_named(ref), **row})
    for cookie in plan.retired:
        await connection.execute(_DROP_RULE, {"of_cookie": cookie})
    cookies = dict(plan.stored.bound.cookies)
    for path, cookie in plan.stored.bound.cookies.items():
        if not cookie:
            added = await connection.execute(_ADD_RULE, {**_named(ref), "path": path})
            cookies[path] = int(added.scalar_one())
    bound = BoundPolicy(plan.stored.bound.policy, cookies)
    return replace(plan, stored=replace(plan.stored, bound=bound))


def _changed(stored: StoredPolicy) -> dict[str, Any]:
    return {
        "to_manifest": stored.manifest,
        "to_time": stored.updated_ns,
        "to_revision": stored.revision,
        "to_prefixes": orjson.dumps(stored.prefixes).decode(),
        "to_lines": orjson.dumps(stored.bound.policy.lines).decode(),
        "to_source": stored.source,
    }


async def _note_group(connection: AsyncConnection, ref: PolicyRef, revision: int) -> None:
    if ref.kind == CIDR_GROUP:
        await connection.execute(_FORGET_CHANGE, {"of_name": ref.name})
        await connection.execute(_NOTE_CHANGE, {"name": ref.name, "revision": revision})


async def _group_changes(connection: AsyncConnection) -> dict[str, int]:
    """The revision at which each group changed last."""
    return {row.name: row.revision for row in (await connection.execute(_GROUP_CHANGES)).all()}


def _effective(stored: StoredPolicy, changes: Mapping[str, int]) -> int:
    return max((stored.revision, *(changes.get(name, 0) for name in groups_named(stored.bound.policy))))


async def _read(connection: AsyncConnection, ref: PolicyRef) -> StoredPolicy | None:
    row = (await connection.execute(_POLICY, _of(ref))).first()
    if row is None:
        return None
    cookies = {rule.path: rule.cookie for rule in (await connection.execute(_RULES_OF, _of(ref))).all()}
    stored = _stored(row, cookies)
    if not groups_named(stored.bound.policy):
        return stored
    return replace(stored, effective_revision=_effective(stored, await _group_changes(connection)))


async def _with_rules(
    connection: AsyncConnection, rows: Sequence[Any], *, everything: bool
) -> list[StoredPolicy]:
    keys = [(row.kind, row.namespace, row.name) for row in rows]
    query = _RULES
    if not everything:
        if not keys:
            return []
        # The rows are a contiguous stretch in key order, or a namespace's part of one.
        query = query.where(tuple_(*_RULE_KEY) >= tuple_(*keys[0]), tuple_(*_RULE_KEY) <= tuple_(*keys[-1]))
    cookies: dict[tuple[str, str, str], dict[str, int]] = {key: {} for key in keys}
    for rule in (await connection.execute(query)).all():
        held = cookies.get((rule.kind, rule.namespace, rule.name))
        if held is not None:
            held[rule.path] = rule.cookie
    changes = await _group_changes(connection)
    found = [_stored(row, cookies[key]) for row, key in zip(rows, keys, strict=True)]
    return [replace(stored, effective_revision=_effective(stored, changes)) for stored in found]


def _stored(row: Any, cookies: Mapping[str, int]) -> StoredPolicy:
    bound, group = read_document(row.manifest, cookies, orjson.loads(row.lines))
    return StoredPolicy(
        bound,
        row.manifest,
        row.revision,
        row.updated_ns,
        orjson.loads(row.prefixes),
        row.source,
        group,
        row.revision,
    )
