"""What both kinds of store promise of reads and writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from contextvars import ContextVar

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis import db as db_module
from services.chassis.db import Database, Group
from services.chassis.errors import FimbriaError, NotFound, ResourceExhausted, Unavailable
from tests.patience import patient
from tests.service.stores.conftest import Store
from tests.service.stores.things import COUNT, INSERT, insert, names

# Violates a constraint.
NULL = text("INSERT INTO thing (name) VALUES (NULL)")


async def test_what_was_written_is_there_for_everybody_who_opens_the_store(store: Store) -> None:
    async with store.open() as first, store.open() as second:
        assert await insert(first, "a") == "a"
        assert await names(second) == ["a"]
        await insert(second, "b")
    async with store.open() as third:
        assert await names(third) == ["a", "b"]


async def test_text_sorts_by_its_bytes(db: Database) -> None:
    await asyncio.gather(*(insert(db, name) for name in ("b", "B", "a-b", "ab", "ä", "_")))
    assert await names(db) == ["B", "_", "a-b", "ab", "b", "ä"]


async def test_an_operation_that_fails_takes_back_only_its_own(db: Database) -> None:
    async def failing(conn: AsyncConnection) -> None:
        await conn.execute(INSERT, {"name": "half"})
        raise NotFound("no such pool", reason="POOL_NOT_FOUND")

    await insert(db, "there")
    found = await asyncio.gather(
        insert(db, "before"),
        db.write(failing),
        insert(db, "there"),
        insert(db, "after"),
        return_exceptions=True,
    )
    assert (found[0], found[3]) == ("before", "after")
    assert isinstance(found[1], NotFound) and isinstance(found[2], IntegrityError)
    assert await names(db) == ["after", "before", "there"]
    # The showers in which failures come are carried out with care; nothing else changes.
    again = await asyncio.gather(insert(db, "next"), db.write(failing), return_exceptions=True)
    assert again[0] == "next" and isinstance(again[1], NotFound)
    with pytest.raises(NotFound):
        await db.write(failing)
    assert await names(db) == ["after", "before", "next", "there"]


async def test_a_failure_that_was_passed_over_is_not_acknowledged_by_what_it_undid(db: Database) -> None:
    def careless(name: str) -> Awaitable[str]:
        async def operation(conn: AsyncConnection) -> str:
            await conn.execute(INSERT, {"name": name})
            with contextlib.suppress(IntegrityError):
                await conn.execute(NULL)
            return name

        return db.write(operation)

    found = list(await asyncio.gather(careless("a"), return_exceptions=True))
    found += await asyncio.gather(insert(db, "b"), careless("c"), insert(db, "d"), return_exceptions=True)
    # SQLite goes on after a statement that failed, PostgreSQL does not.
    assert all(isinstance(each, str | Unavailable) for each in found), found
    assert await names(db) == [each for each in found if isinstance(each, str)]
    assert (found[1], found[3]) == ("b", "d")


async def test_writes_that_arrive_together_share_a_transaction(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await insert(db, "alone")
    begun: list[object] = []
    begin = db._backend.begin_write

    async def counted(connection: AsyncConnection) -> object:
        begun.append(None)
        return await begin(connection)

    monkeypatch.setattr(db._backend, "begin_write", counted)
    await asyncio.gather(*(insert(db, f"{number:04}") for number in range(db_module.MAX_BATCH)))
    assert len(begun) == 1
    assert len(await names(db)) == db_module.MAX_BATCH + 1


async def test_items_of_a_group_share_a_call_and_fail_by_themselves(db: Database) -> None:
    calls: list[list[str]] = []

    async def together(conn: AsyncConnection, items: Sequence[str]) -> list[str | FimbriaError]:
        calls.append(list(items))
        if "poison" in items:
            await conn.execute(NULL)
        await conn.execute(INSERT, [{"name": item} for item in items if item != "refused"])
        refusal = NotFound("no such thing", reason="THING_NOT_FOUND")
        return [refusal if item == "refused" else item.upper() for item in items]

    group = Group(db, together)
    found = await asyncio.gather(
        *(group.submit(item) for item in ("a", "refused")),
        insert(db, "x"),
        group.submit("b"),
        return_exceptions=True,
    )
    assert (found[0], found[2], found[3]) == ("A", "x", "B")
    assert isinstance(found[1], NotFound)
    assert calls == [["a", "refused", "b"]]
    calls.clear()
    found = await asyncio.gather(
        *(group.submit(item) for item in ("c", "poison", "d")), return_exceptions=True
    )
    assert (found[0], found[2]) == ("C", "D") and isinstance(found[1], IntegrityError)
    assert calls == [["c", "poison", "d"], ["c"], ["poison"], ["d"]]
    assert await names(db) == ["a", "b", "c", "d", "x"]


async def test_nobody_writes_between_what_an_operation_reads_and_writes(
    db: Database, other: Database
) -> None:
    await insert(db, "n")

    async def increase(conn: AsyncConnection) -> int:
        count = (await conn.execute(COUNT, {"name": "n"})).scalar_one()
        await asyncio.sleep(0)
        await conn.execute(text("UPDATE thing SET count = :count WHERE name = 'n'"), {"count": count + 1})
        return int(count) + 1

    counts = await asyncio.gather(*((db, other)[number % 2].write(increase) for number in range(200)))
    assert sorted(counts) == list(range(1, 201))


async def test_operations_run_in_their_callers_context_and_callbacks_in_commit_order(db: Database) -> None:
    who: ContextVar[str] = ContextVar("who")
    called: list[str] = []

    async def caller(name: str) -> str:
        who.set(name)

        async def operation(conn: AsyncConnection) -> str:
            db.after_commit(lambda: called.append(name))
            if name == "bad":
                raise ValueError(name)
            return who.get()

        return await db.write(operation)

    found = await asyncio.gather(*(caller(name) for name in ("one", "bad", "two")), return_exceptions=True)
    assert (found[0], found[2]) == ("one", "two") and isinstance(found[1], ValueError)
    # Whatever was tried twice is told once.
    assert called == ["one", "two"]


async def test_a_read_is_one_snapshot_and_cannot_be_written_through(db: Database) -> None:
    await insert(db, "a")
    async with db.read() as conn:
        count = text("SELECT count(*) FROM thing")
        assert (await conn.execute(count)).scalar_one() == 1
        await insert(db, "b")
        assert (await conn.execute(count)).scalar_one() == 1
    with pytest.raises(FimbriaError):
        async with db.read() as conn:
            await conn.execute(INSERT, {"name": "sneaked"})
    assert await names(db) == ["a", "b"]


async def test_too_many_waiting_writes_are_refused_at_once(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db_module, "MAX_WAITING", 10)
    found = await asyncio.gather(
        *(insert(db, f"{number:02}") for number in range(15)), return_exceptions=True
    )
    refused = [each for each in found if isinstance(each, ResourceExhausted)]
    assert len(refused) == 5
    assert {each.reason for each in refused} == {"OVERLOADED"}
    assert all(each.retry_after is not None and each.retry_after > 0 for each in refused)
    assert await names(db) == [each for each in found if isinstance(each, str)]


async def test_writes_whose_callers_have_gone_are_not_done_and_make_room(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(conn: AsyncConnection) -> None:
        entered.set()
        await leave.wait()

    monkeypatch.setattr(db_module, "MAX_WAITING", 10)
    holding = asyncio.create_task(db.write(slow))
    await entered.wait()
    gone = [asyncio.create_task(insert(db, f"gone-{number}")) for number in range(10)]
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    late = asyncio.create_task(insert(db, "late"))
    leave.set()
    async with asyncio.timeout(patient(5.0)):
        await asyncio.gather(holding, late)
    assert await names(db) == ["late"]


async def test_closing_commits_what_waits_and_refuses_more(store: Store) -> None:
    async with store.open() as db:
        queued = [asyncio.create_task(insert(db, name)) for name in "abc"]
        await asyncio.sleep(0)
        await db.close()
        assert await asyncio.gather(*queued) == ["a", "b", "c"]
        with pytest.raises(Unavailable) as caught:
            await insert(db, "late")
        assert caught.value.reason == "DATABASE_CLOSED"
