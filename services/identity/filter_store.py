"""The label filter in SQL: one for all replicas, each of which follows its changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson
from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.errors import FimbriaError
from services.chassis.feed import Feed
from services.chassis.labels import LabelSet
from services.chassis.logs import get_logger
from services.identity import problems
from services.identity.filter_preview import Preview, preview
from services.identity.label_filter import LabelFilter
from services.identity.labelset import normalise
from services.identity.numbers import CLUSTER
from services.identity.schema import ipcache, label_filter
from services.identity.store import read_past

# How many label sets are remembered with what the filter leaves of them.
REMEMBERED = 8192
RETRY_SECONDS = 0.5

_READ = select(label_filter.c.patterns, label_filter.c.revision)
_SET = (
    update(label_filter)
    .where(label_filter.c.singleton == 1)
    .values(patterns=bindparam("to_patterns"), revision=bindparam("to_revision"))
)
_ENTRIES = select(ipcache.c.identity, func.count().label("entries")).group_by(ipcache.c.identity)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredFilter:
    """A filter and the revision at which it came into force."""

    filter: LabelFilter
    revision: int


class FilterStore:
    """The filter in force, as this replica knows it: at most a second behind the store."""

    def __init__(self, database: Database, feed: Feed, stored: StoredFilter) -> None:
        self._database = database
        self.feed = feed
        self._stored = stored
        self._relevant: dict[tuple[str, ...], LabelSet] = {}

    @classmethod
    async def open(cls, database: Database, feed: Feed) -> FilterStore:
        """With the filter that is stored."""
        return cls(database, feed, await _read(database))

    @property
    def revision(self) -> int:
        """Of the filter that this replica applies."""
        return self._stored.revision

    def relevant(self, labels: Sequence[str]) -> LabelSet:
        """The security-relevant ones of a workload's labels, in normal form.

        Raises InvalidArgument naming the label; see `labelset.normalise`.
        """
        given = tuple(labels)
        found = self._relevant.get(given)
        if found is None:
            found = self._stored.filter.apply(normalise(given))
            if len(self._relevant) >= REMEMBERED:
                del self._relevant[next(iter(self._relevant))]
            self._relevant[given] = found
        return found

    async def get(self) -> StoredFilter:
        """The filter as it is stored."""
        return await _read(self._database)

    async def preview(self, wanted: LabelFilter) -> Preview:
        """What `wanted` would do to the identities that there are."""
        async with self._database.read() as connection:
            found = await read_past(connection, 0, CLUSTER.capacity)
            entries = {row.identity: row.entries for row in (await connection.execute(_ENTRIES)).all()}
        cluster = [identity for identity in found if identity.number in CLUSTER]
        # A full space is half a second's work.
        return await asyncio.to_thread(preview, wanted, cluster, entries)

    async def set(self, wanted: LabelFilter, *, expected_revision: int, trace: str) -> StoredFilter:
        """Puts `wanted` into force; the filter that is there already keeps its revision.

        Raises Aborted (FILTER_CHANGED) when the present revision is not the expected one (0: any).
        """

        async def operation(connection: AsyncConnection) -> StoredFilter:
            present = _from_row((await connection.execute(_READ)).one())
            check_revision(present, expected_revision)
            if present.filter == wanted:
                return present
            stored = StoredFilter(wanted, present.revision + 1)
            patterns = orjson.dumps(wanted.texts)
            changed = {"to_patterns": patterns.decode(), "to_revision": stored.revision}
            await connection.execute(_SET, changed)
            await self.feed.append(connection, "filter", patterns, trace=trace)
            return stored

        stored = await self._database.write(operation)
        self._take(stored)
        return stored

    async def follow(self) -> NoReturn:
        """Applies what other replicas put into force, for ever."""
        while True:
            try:
                revision = self.feed.revision
                self._take(await _read(self._database))
                async for batch in self.feed.watch(revision):
                    if batch.events:
                        self._take(await _read(self._database))
            except FimbriaError as error:
                log.warning("cannot follow the label filter", reason=error.reason, error=str(error))
            await asyncio.sleep(RETRY_SECONDS)

    def _take(self, stored: StoredFilter) -> None:
        if stored.revision > self._stored.revision:
            self._stored = stored
            self._relevant = {}
            log.info("label filter", revision=stored.revision, patterns=list(stored.filter.texts))


def check_revision(present: StoredFilter, expected: int) -> None:
    """Raises Aborted (FILTER_CHANGED) when the filter's revision is not the expected one (0: any)."""
    if expected and expected != present.revision:
        raise problems.filter_changed(expected, present.revision)


async def _read(database: Database) -> StoredFilter:
    async with database.read() as connection:
        return _from_row((await connection.execute(_READ)).one())


def _from_row(row: Any) -> StoredFilter:
    return StoredFilter(LabelFilter.parse(orjson.loads(row.patterns)), row.revision)
