"""Numbers from the real store: rotation over a nearly full space, and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.errors import ResourceExhausted
from services.chassis.feed import Feed
from services.chassis.labels import LabelSet
from services.identity.labelset import digest, encode
from services.identity.reserved import CLUSTER_FIRST, CLUSTER_LAST
from services.identity.schema import identities, identity_cursor
from services.identity.store import IdentityStore


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/identity.db"
    async with await Database.open(url, "services.identity.migrations") as database:
        yield database


def store_over(database: Database) -> IdentityStore:
    return IdentityStore(database, Feed(database, "identities"), time.time_ns)


def app(name: str) -> LabelSet:
    return LabelSet([f"k8s:app={name}"])


async def fill(database: Database, *, free: set[int], cursor: int) -> None:
    """Uses every number but `free`, and puts the cursor where it would stand."""

    async def operation(connection: AsyncConnection) -> None:
        rows = []
        for number in range(CLUSTER_FIRST, CLUSTER_LAST + 1):
            if number not in free:
                labels = encode(app(f"n{number}"))
                rows.append(
                    {
                        "id": number,
                        "digest": digest(labels),
                        "labels": labels.decode(),
                        "revision": number,
                        "created_ns": 0,
                    }
                )
        await connection.execute(insert(identities), rows)
        await connection.execute(update(identity_cursor).values(next_id=cursor))

    await database.write(operation)


async def test_the_last_free_numbers_are_found_in_rotation_and_then_none(database: Database) -> None:
    await fill(database, free={300, 40_000}, cursor=CLUSTER_LAST - 5)
    store = store_over(database)
    assert (await store.resolve(app("one"), trace="")).number == 300
    assert (await store.resolve(app("two"), trace="")).number == 40_000
    with pytest.raises(ResourceExhausted) as caught:
        await store.resolve(app("three"), trace="")
    assert caught.value.reason == "IDENTITIES_EXHAUSTED"
    metadata = caught.value.metadata
    assert metadata.pop("help") in str(caught.value)
    assert metadata == {
        "first": "256",
        "last": "65535",
        "capacity": "65280",
        "used": "65280",
        "unused": "0",
        "transient": "false",
    }
    assert caught.value.retry_after is None
    # Known sets go on resolving, also by a process that has never seen them.
    assert (await store.resolve(app("one"), trace="")).number == 300
    assert (await store_over(database).resolve(app("n999"), trace="")).number == 999


async def test_numbers_go_on_after_the_last_one_across_processes(database: Database) -> None:
    first = await store_over(database).resolve(app("one"), trace="")
    second = await store_over(database).resolve(app("two"), trace="")
    assert (first.number, second.number) == (256, 257)


async def test_two_stores_over_one_file_agree_on_a_new_set(database: Database) -> None:
    stores = [store_over(database) for _ in range(4)]
    answers = await asyncio.gather(*(store.resolve(app("new"), trace="") for store in stores * 5))
    assert {answer.number for answer in answers} == {256}


async def test_remembering_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.identity.store.REMEMBERED", 2)
    store = store_over(database)
    numbers = [(await store.resolve(app(name), trace="")).number for name in "abcab"]
    assert numbers == [256, 257, 258, 256, 257]
