"""Who uses which identities, in SQL. A holder's uses last as long as its lease, which each report renews.

Whenever a use ends, the identity is touched: garbage collection then counts its grace period from that
moment, also when it happens to look only before the use began and after it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Boolean, Text, bindparam, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database, Group
from services.chassis.errors import FimbriaError
from services.chassis.feed import Feed
from services.chassis.statements import Sql, SqlOfKeys
from services.identity.chunks import chunks
from services.identity.reserved import CLUSTER_FIRST, PREFIX_FIRST
from services.identity.schema import holders, identities, identity_uses, prefixes

_STATE = select(holders.c.name, holders.c.changes, holders.c.active, holders.c.ended_revision).where(
    holders.c.name.in_(bindparam("names", expanding=True))
)
_USES = Sql("SELECT identity FROM identity_uses WHERE holder = ?")
_RENEWALS = select(holders.c.name, holders.c.renewals).where(holders.c.active)
_ACTIVE = select(func.count()).select_from(holders).where(holders.c.active)
_RENEW = (
    update(holders)
    .where(holders.c.name == bindparam("of_name"))
    .values(renewals=holders.c.renewals + 1, reported_ns=bindparam("to_ns"))
)
# Text, because SQLite and PostgreSQL agree on it word for word, which SQLAlchemy's constructs do not.
_REPORTED = text(
    "INSERT INTO holders (name, renewals, changes, reported_ns, active, ended_revision)"
    " VALUES (:name, 1, 1, :now, :active, 0)"
    " ON CONFLICT (name) DO UPDATE SET renewals = holders.renewals + 1, changes = holders.changes + 1,"
    " reported_ns = excluded.reported_ns, active = excluded.active, ended_revision = 0"
).bindparams(
    bindparam("name", type_=Text), bindparam("now", type_=BigInteger), bindparam("active", type_=Boolean)
)
# Who resolves is alive, yet has not said what else it uses: what it missed while it had no lease counts.
_SEEN = Sql(
    "INSERT INTO holders (name, renewals, changes, reported_ns, active, ended_revision)"
    " VALUES (?, 1, 1, ?, TRUE, 0)"
    " ON CONFLICT (name) DO UPDATE SET renewals = holders.renewals + 1, changes = holders.changes + 1,"
    " active = TRUE"
)
_USE = Sql(
    "INSERT INTO identity_uses (holder, identity) VALUES (?, ?) ON CONFLICT (holder, identity) DO NOTHING"
)
_ADD_USE = insert(identity_uses)
_DROP_USE = delete(identity_uses).where(
    identity_uses.c.holder == bindparam("of_holder"), identity_uses.c.identity == bindparam("of_identity")
)
_DROP_USES = delete(identity_uses).where(identity_uses.c.holder == bindparam("of_holder"))
_END = (
    update(holders)
    .where(holders.c.name == bindparam("of_name"))
    .values(active=False, changes=holders.c.changes + 1, ended_revision=bindparam("to_revision"))
)
_LEASE = select(holders.c.renewals, holders.c.active).where(holders.c.name == bindparam("of_name"))
_FORGET = delete(holders).where(~holders.c.active, holders.c.reported_ns < bindparam("before_ns"))
_PAGE = (
    select(
        holders.c.name,
        holders.c.reported_ns,
        select(func.count())
        .select_from(identity_uses)
        .where(identity_uses.c.holder == holders.c.name)
        .scalar_subquery()
        .label("uses"),
    )
    .where(holders.c.active, holders.c.name > bindparam("after"))
    .order_by(holders.c.name)
)
_TOUCH = {
    table: SqlOfKeys(
        f"UPDATE {table.name} SET touched = touched + 1 WHERE id IN ({{keys}}) RETURNING id", "?", (-1,)
    )
    for table in (identities, prefixes)
}
_REVISIONS = {
    table: select(table.c.id, table.c.revision).where(table.c.id.in_(bindparam("numbers", expanding=True)))
    for table in (identities, prefixes)
}


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a lease: how many identities it uses, and when it last reported, in Unix nanoseconds."""

    name: str
    identities: int
    reported_ns: int


@dataclass(frozen=True, slots=True)
class Reported:
    """What came of a report: numbers that mean nothing, and those that the holder has ceased to use."""

    unknown: tuple[int, ...] = ()
    ended: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Report:
    holder: str
    numbers: frozenset[int]
    now_ns: int
    # The holder's changes at which its uses were exactly these numbers; None when they were others.
    unchanged_at: int | None = None


class UseStore:
    """Reports, leases and their ends. `clock` returns Unix time in nanoseconds, which is only shown."""

    def __init__(self, database: Database, feed: Feed, clock: Callable[[], int]) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._reports: Group[_Report, Reported] = Group(database, self._report_together)

    async def report(self, holder: str, numbers: Iterable[int]) -> Reported:
        """`holder` uses these identities, and no others; reserved ones are passed over.

        Costs one update when that is what it used before. An identity that came into being while the holder
        had no lease is unknown to it, whatever it takes the number for: it has to resolve again.
        """
        wanted = frozenset(number for number in numbers if number >= CLUSTER_FIRST)
        async with self._database.read() as connection:
            row = (await connection.execute(_STATE, {"names": [holder]})).first()
            same = row is not None and row.active and await _uses(connection, holder) == wanted
        report = _Report(holder, wanted, self._clock(), row.changes if row is not None and same else None)
        return await self._reports.submit(report)

    async def end(self, holder: str) -> tuple[int, ...]:
        """Ends a lease, if there is one; returns what was in use until then."""

        async def operation(connection: AsyncConnection) -> tuple[int, ...]:
            row = (await connection.execute(_LEASE, {"of_name": holder})).first()
            return await self._end(connection, holder) if row is not None and row.active else ()

        return await self._database.write(operation)

    async def expire(self, holder: str, renewals: int) -> tuple[int, ...] | None:
        """Ends a lease unless it has been renewed since `renewals`; None when it has."""

        async def operation(connection: AsyncConnection) -> tuple[int, ...] | None:
            row = (await connection.execute(_LEASE, {"of_name": holder})).first()
            if row is None or not row.active or row.renewals != renewals:
                return None
            return await self._end(connection, holder)

        return await self._database.write(operation)

    async def renewals(self) -> list[tuple[str, int]]:
        """Every holder with a lease, and how often that was renewed."""
        async with self._database.read() as connection:
            return [(row.name, row.renewals) for row in (await connection.execute(_RENEWALS)).all()]

    async def list(self, *, after: str, limit: int | None) -> list[Holder]:
        """Up to `limit` holders with a lease, by name past `after`."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_PAGE.limit(limit), {"after": after})).all()
        return [Holder(row.name, row.uses, row.reported_ns) for row in rows]

    async def count(self) -> int:
        """How many have a lease."""
        async with self._database.read() as connection:
            return int((await connection.execute(_ACTIVE)).scalar_one())

    async def forget_ended(self, before_ns: int) -> None:
        """Drops what is kept of holders without a lease that have not reported since then."""

        async def operation(connection: AsyncConnection) -> None:
            await connection.execute(_FORGET, {"before_ns": before_ns})

        await self._database.write(operation)

    # -- inside

    async def _report_together(
        self, connection: AsyncConnection, reports: Sequence[_Report]
    ) -> Sequence[Reported | FimbriaError]:
        names = sorted({report.holder for report in reports})
        states = {row.name: row for row in (await connection.execute(_STATE, {"names": names})).all()}
        results: list[Reported] = []
        renewed: list[dict[str, Any]] = []
        changed: set[str] = set()
        for report in reports:
            state = states.get(report.holder)
            if (
                report.unchanged_at is not None
                and state is not None
                and (state.active, state.changes) == (True, report.unchanged_at)
                and report.holder not in changed
            ):
                renewed.append({"of_name": report.holder, "to_ns": report.now_ns})
                results.append(Reported())
                continue
            # Of two reports of one holder, the first has settled what it missed.
            ended = state.ended_revision if state is not None and report.holder not in changed else 0
            results.append(await self._change(connection, report, ended))
            changed.add(report.holder)
        if renewed:
            await connection.execute(_RENEW, renewed)
        return results

    async def _change(self, connection: AsyncConnection, report: _Report, ended_revision: int) -> Reported:
        stored = await _uses(connection, report.holder)
        added, ended = sorted(report.numbers - stored), tuple(sorted(stored - report.numbers))
        there = await _revisions(connection, added)
        unknown = tuple(
            number
            for number in added
            if number not in there or (ended_revision and there[number] > ended_revision)
        )
        missing = {*unknown}
        new = [{"holder": report.holder, "identity": number} for number in added if number not in missing]
        if new:
            await connection.execute(_ADD_USE, new)
        if ended:
            await connection.execute(
                _DROP_USE, [{"of_holder": report.holder, "of_identity": number} for number in ended]
            )
            await touch(connection, ended)
        await connection.execute(_REPORTED, {"name": report.holder, "now": report.now_ns, "active": True})
        return Reported(unknown, ended)

    async def _end(self, connection: AsyncConnection, holder: str) -> tuple[int, ...]:
        ended = tuple(sorted(await _uses(connection, holder)))
        await connection.execute(_DROP_USES, {"of_holder": holder})
        await touch(connection, ended)
        revision = await self._feed.revision_at(connection)
        await connection.execute(_END, {"of_name": holder, "to_revision": revision})
        return ended


async def hold(connection: AsyncConnection, pairs: Collection[tuple[str, int]], now_ns: int) -> None:
    """Inside a write: each holder uses its identity from now on, which exists; reserved ones need no use."""
    uses: list[tuple[Any, ...]] = [pair for pair in pairs if pair[1] >= CLUSTER_FIRST]
    names = sorted({holder for holder, number in pairs if number >= CLUSTER_FIRST})
    await _SEEN.run_each(connection, [(name, now_ns) for name in names])
    await _USE.run_each(connection, uses)


async def touch(connection: AsyncConnection, numbers: Iterable[int]) -> None:
    """Inside a write: garbage collection counts the grace period of these identities anew."""
    for table, part in _by_table(numbers):
        await _TOUCH[table].rows(connection, [(number,) for number in part])


async def _uses(connection: AsyncConnection, holder: str) -> frozenset[int]:
    return frozenset(number for (number,) in await _USES.rows(connection, holder))


async def _revisions(connection: AsyncConnection, numbers: Iterable[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for table, part in _by_table(numbers):
        for chunk in chunks(part):
            rows = (await connection.execute(_REVISIONS[table], {"numbers": chunk})).all()
            found.update((row.id, row.revision) for row in rows)
    return found


def _by_table(numbers: Iterable[int]) -> Iterable[tuple[Any, list[int]]]:
    ordered = sorted(numbers)
    yield identities, [number for number in ordered if number < PREFIX_FIRST]
    yield prefixes, [number for number in ordered if number >= PREFIX_FIRST]
