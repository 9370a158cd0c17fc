"""Stores of former versions are taken over with their identities; a replica of the version before goes on."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.chassis.labels import LabelSet
from services.chassis.migrate import migrations_directory
from services.identity.filter_store import FilterStore
from services.identity.labelset import digest, encode
from services.identity.model import Identity
from services.identity.prefix_store import PrefixStore
from services.identity.reserved import PREFIX_FIRST
from services.identity.store import IdentityStore

WEB = LabelSet(["k8s:app=web"])
DB = LabelSet(["k8s:app=db"])

# What the versions before leases write; nothing of it may fail beside the schema of today.
_ADD = text(
    "INSERT INTO identities (id, digest, labels, revision, created_ns)"
    " VALUES (:id, :digest, :labels, :revision, 1)"
)
_MOVE = text("UPDATE identity_cursor SET next_id = :next")


async def add_as_before(database: Database, number: int, labels: LabelSet) -> Identity:
    """What a process of a former version does for a new label set."""
    feed = Feed(database, "identities")
    encoded = encode(labels)

    async def operation(connection: object) -> int:
        revision = await feed.append(connection, str(number), encoded)  # type: ignore[arg-type]
        row = {"id": number, "digest": digest(encoded), "labels": encoded.decode(), "revision": revision}
        await connection.execute(_ADD, row)  # type: ignore[attr-defined]
        await connection.execute(_MOVE, {"next": number + 1})  # type: ignore[attr-defined]
        return revision

    return Identity(number, labels, await database.write(operation))


@pytest.mark.parametrize("versions", [["0001_initial"], ["0001_initial", "0002_prefixes"]])
async def test_a_former_store_is_taken_over(tmp_path: Path, versions: list[str]) -> None:
    url = f"sqlite:///{tmp_path}/identity.db"
    former = tmp_path / "former" / "versions"
    former.mkdir(parents=True)
    for name in versions:
        shutil.copy(migrations_directory("services.identity.migrations") / "versions" / f"{name}.py", former)
    async with await Database.open(url, former.parent) as database:
        before = await add_as_before(database, 256, WEB)
    async with await Database.open(url, "services.identity.migrations") as database:
        feed = Feed(database, "identities")
        store = IdentityStore(database, feed, time.time_ns)
        assert await store.resolve(WEB, holder="node/a", trace="") == before
        prefixes = PrefixStore(database, feed, time.time_ns)
        (made,) = await prefixes.resolve(["10.0.0.0/8"], trace="")
        assert (made.number, made.revision) == (PREFIX_FIRST, before.revision + 1)
        found, revision = await store.list(after=0, limit=None)
        assert (list(found), revision) == ([before, made], made.revision)
        filters = await FilterStore.open(database, Feed(database, "label_filter"))
        assert filters.revision == 1
        assert filters.relevant(["k8s:app=web", "k8s:pod-template-hash=5d4"]) == WEB


async def test_a_replica_of_the_version_before_goes_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/identity.db"
    async with await Database.open(url, "services.identity.migrations") as database:
        made = await add_as_before(database, 256, WEB)
        store = IdentityStore(database, Feed(database, "identities"), time.time_ns)
        assert await store.resolve(WEB, trace="") == made
        assert (await store.resolve(DB, trace="")).number == 257
