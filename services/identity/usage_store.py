"""How full the number spaces are, now and over the last hour: samples in SQL, shared by the replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import bindparam, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.identity.forecast import HOUR_NS, SECOND_NS, Sample
from services.identity.numbers import Space
from services.identity.schema import usage_samples
from services.identity.spaces import TABLES

# One sample a minute for all replicas together, give or take.
SAMPLE_SECONDS = 60.0

_SAMPLES = select(usage_samples.c.at_ns, usage_samples.c.taken).where(
    usage_samples.c.space == bindparam("of_space")
)
_NEWEST = select(func.max(usage_samples.c.at_ns)).where(usage_samples.c.space == bindparam("of_space"))
_ADD = insert(usage_samples)
# Those of the future are what a clock has left that was set back since.
_DROP = delete(usage_samples).where(
    usage_samples.c.space == bindparam("of_space"),
    (usage_samples.c.at_ns < bindparam("oldest_ns")) | (usage_samples.c.at_ns > bindparam("now_ns")),
)
_TAKEN = {
    name: select(func.count())
    .select_from(table)
    .where(table.c.id.between(bindparam("first"), bindparam("last")))
    for name, table in TABLES.items()
}


class UsageStore:
    """Samples of the spaces. `clock` returns Unix time in nanoseconds."""

    def __init__(self, database: Database, spaces: Sequence[Space], clock: Callable[[], int]) -> None:
        self._database = database
        self._spaces = spaces
        self._clock = clock

    async def sample(self) -> None:
        """Takes a sample of each space, unless a replica has done so within the last minute."""

        async def operation(connection: AsyncConnection) -> None:
            now_ns = self._clock()
            for space in self._spaces:
                bounds = {"of_space": space.name, "oldest_ns": now_ns - HOUR_NS, "now_ns": now_ns}
                await connection.execute(_DROP, bounds)
                newest = (await connection.execute(_NEWEST, {"of_space": space.name})).scalar()
                if newest is None or now_ns - newest > SAMPLE_SECONDS * SECOND_NS * 3 // 4:
                    taken = await _taken(connection, space)
                    row = {"space": space.name, "at_ns": now_ns, "taken": taken}
                    await connection.execute(_ADD, row)

        await self._database.write(operation)

    async def read(self, space: Space) -> tuple[list[Sample], Sample]:
        """What is known of a space, and how full it is now."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_SAMPLES, {"of_space": space.name})).all()
            now = Sample(self._clock(), await _taken(connection, space))
        return [Sample(row.at_ns, row.taken) for row in rows], now


async def _taken(connection: AsyncConnection, space: Space) -> int:
    bounds = {"first": space.first, "last": space.last}
    return int((await connection.execute(_TAKEN[space.name], bounds)).scalar_one())
