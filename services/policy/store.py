# SPDX-License-Identifier: Apache-2.0
"""Policies in SQL. Every change of a policy is one event of the policy feed, in the same transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson
from sqlalchemy import bindparam, delete, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed, FeedEvent
from services.chassis.paging import Page, PageRequest
from services.policy import problems
from services.policy.manifest import Manifest, load_stored
from services.policy.resolve import BoundPolicy
from services.policy.rules import PolicyRef
from services.policy.schema import policies, rules

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
        manifest=bindparam("to_manifest"), updated_ns=bindparam("to_time"), revision=bindparam("to_revision")
    )
)
_DROP = delete(policies).where(_at(_KEY))


class Outcome(Enum):
    """What an apply did to a policy."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy with its rule numbers. `manifest` is canonical JSON; `updated_ns` Unix time in nanoseconds."""

    bound: BoundPolicy
    manifest: str
    revision: int
    updated_ns: int

    @property
    def ref(self) -> PolicyRef:
        return self.bound.ref


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of each policy of an apply, and the revision that has all of it."""

    policies: tuple[tuple[StoredPolicy, Outcome], ...]
    revision: int


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
        self, manifests: Sequence[Manifest], *, trace: str = "", dry_run: bool = False
    ) -> Applied:
        """Add or change all of them in one transaction. What is there as given keeps its revision.

        With `dry_run` nothing is stored; rules that would be new have the cookie 0.
        """
        now = self._clock()

        async def operation(connection: AsyncConnection) -> Applied:
            done = []
            for manifest in manifests:
                done.append(await self._apply_one(connection, manifest, now, trace))
            return Applied(tuple(done), await self._feed.revision_at(connection))

        if not dry_run:
            return await self._database.write(operation)
        async with self._database.read() as connection:
            planned = []
            for manifest in manifests:
                stored, outcome, _ = await _plan(connection, manifest, now)
                planned.append((stored, outcome))
            return Applied(tuple(planned), await self._feed.revision_at(connection))

    async def delete(self, refs: Iterable[PolicyRef], *, trace: str = "") -> tuple[list[PolicyRef], int]:
        """Remove policies; those that are not there are passed over. Returns what is gone, and the
        revision.
        """

        async def operation(connection: AsyncConnection) -> tuple[list[PolicyRef], int]:
            gone = []
            for ref in refs:
                result = await connection.execute(_DROP, _of(ref))
                if result.rowcount:
                    await self._feed.append(connection, _feed_key(ref), b"", deleted=True, trace=trace)
                    gone.append(ref)
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

    async def _apply_one(
        self, connection: AsyncConnection, manifest: Manifest, now: int, trace: str
    ) -> tuple[StoredPolicy, Outcome]:
        planned, outcome, retired = await _plan(connection, manifest, now)
        if outcome is Outcome.UNCHANGED:
            return planned, outcome
        ref = planned.ref
        if outcome is Outcome.CREATED:
            # The rules refer to the policy, so it comes first; its revision is known only after them.
            row = {**_named(ref), "manifest": manifest.text, "updated_ns": now, "revision": 0}
            await connection.execute(_ADD, row)
        for cookie in retired:
            await connection.execute(_DROP_RULE, {"of_cookie": cookie})
        cookies = await _number_rules(connection, ref, planned.bound.cookies)
        payload = orjson.dumps({"manifest": manifest.text, "cookies": cookies, "updated_ns": now})
        revision = await self._feed.append(connection, _feed_key(ref), payload, trace=trace)
        await connection.execute(
            _CHANGE, {**_of(ref), "to_manifest": manifest.text, "to_time": now, "to_revision": revision}
        )
        return StoredPolicy(BoundPolicy(manifest.policy, cookies), manifest.text, revision, now), outcome


def policy_of(event: FeedEvent) -> StoredPolicy | PolicyRef:
    """What an event of the feed says: the policy as it is now, or the name of one that is gone."""
    if event.deleted:
        kind, namespace, name = event.key.split("/", 2)
        return PolicyRef(kind, namespace, name)
    payload = orjson.loads(event.payload)
    bound = BoundPolicy(load_stored(payload["manifest"]), payload["cookies"])
    return StoredPolicy(bound, payload["manifest"], event.revision, payload["updated_ns"])


def _feed_key(ref: PolicyRef) -> str:
    return f"{ref.kind}/{ref.namespace}/{ref.name}"


def _named(ref: PolicyRef) -> dict[str, str]:
    return {"kind": ref.kind, "namespace": ref.namespace, "name": ref.name}


def _of(ref: PolicyRef) -> dict[str, Any]:
    return {f"of_{key}": value for key, value in _named(ref).items()}


async def _plan(
    connection: AsyncConnection, manifest: Manifest, now: int
) -> tuple[StoredPolicy, Outcome, list[int]]:
    """What applying would do, and the cookies of the rules that would go. New rules have the cookie 0."""
    present = await _read(connection, manifest.policy.ref)
    if present is not None and present.manifest == manifest.text:
        return present, Outcome.UNCHANGED, []
    known = present.bound.cookies if present is not None else {}
    cookies = {rule.path: known.get(rule.path, 0) for rule in manifest.policy.rules()}
    planned = StoredPolicy(
        BoundPolicy(manifest.policy, cookies), manifest.text, present.revision if present else 0, now
    )
    outcome = Outcome.CHANGED if present is not None else Outcome.CREATED
    return planned, outcome, [cookie for path, cookie in known.items() if path not in cookies]


async def _number_rules(
    connection: AsyncConnection, ref: PolicyRef, planned: Mapping[str, int]
) -> dict[str, int]:
    """Give a number to each rule that has none yet."""
    cookies = dict(planned)
    for path, cookie in planned.items():
        if not cookie:
            added = await connection.execute(_ADD_RULE, {**_named(ref), "path": path})
            cookies[path] = int(added.scalar_one())
    return cookies


async def _read(connection: AsyncConnection, ref: PolicyRef) -> StoredPolicy | None:
    row = (await connection.execute(_POLICY, _of(ref))).first()
    if row is None:
        return None
    cookies = {rule.path: rule.cookie for rule in (await connection.execute(_RULES_OF, _of(ref))).all()}
    return _stored(row, cookies)


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
    return [_stored(row, cookies[key]) for row, key in zip(rows, keys, strict=True)]


def _stored(row: Any, cookies: Mapping[str, int]) -> StoredPolicy:
    bound = BoundPolicy(load_stored(row.manifest), cookies)
    return StoredPolicy(bound, row.manifest, row.revision, row.updated_ns)
