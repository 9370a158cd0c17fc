"""Statements that go to the driver as they stand mean the same on both kinds of store."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.statements import KEYS, Sql, SqlOfKeys
from tests.service.stores.things import names

INSERT = Sql("INSERT INTO thing (name, count) VALUES (?, ?)")
OF_NAMES = SqlOfKeys("SELECT name, count FROM thing WHERE name IN ({keys})", "?", ("",))
PAIRS = SqlOfKeys(
    "WITH wanted (name, count) AS (VALUES {keys}) SELECT t.name FROM wanted AS w"
    " JOIN thing AS t ON t.name = w.name AND t.count = w.count",
    "(CAST(? AS VARCHAR), CAST(? AS INTEGER))",
    ("", 0),
)


async def test_rows_and_counts(db: Database) -> None:

    async def operation(connection: AsyncConnection) -> int:
        await INSERT.run_each(connection, [])
        # One more than goes without a thread of its own.
        await INSERT.run_each(connection, [(f"t{number}", number) for number in range(65)])
        await INSERT.run_each(connection, [("last", 99)])
        return await Sql("UPDATE thing SET count = ? WHERE count < ?").run(connection, 7, 10)

    assert await db.write(operation) == 10
    async with db.read() as connection:
        ((count, least),) = await Sql("SELECT count(*), min(count) FROM thing").rows(connection)
        assert (count, least) == (66, 7)
        assert not await Sql("SELECT name FROM thing WHERE name = ?").rows(connection, "nobody")
        rows = await Sql("SELECT count FROM thing WHERE name = ? OR count = ?").rows(connection, "t3", 99)
        assert sorted(row[0] for row in rows) == [7, 99]


@pytest.mark.parametrize("count", [0, 1, 2, 3, KEYS - 1, KEYS, KEYS + 1, 2 * KEYS + 5])
async def test_any_number_of_keys(db: Database, count: int) -> None:
    things = [(f"t{number:04}", number) for number in range(count + 3)]
    await db.write(lambda connection: INSERT.run_each(connection, things))
    async with db.read() as connection:
        wanted = things[:count]
        found = await OF_NAMES.rows(connection, [*((name,) for name, _ in wanted), ("nobody",)])
        assert sorted(map(tuple, found)) == wanted
        pairs = await PAIRS.rows(connection, [*wanted, ("t0000", 5)] if count else [])
        assert sorted(row[0] for row in pairs) == [name for name, _ in wanted]


async def test_what_a_constraint_refuses_fails_the_operation_alone(db: Database) -> None:
    await db.write(lambda connection: INSERT.run_each(connection, [("a", 1)]))

    async def twice(connection: AsyncConnection) -> None:
        await INSERT.run_each(connection, [("b", 2)])
        await INSERT.run(connection, "a", 2)

    with pytest.raises(IntegrityError):
        await db.write(twice)
    assert await names(db) == ["a"]
