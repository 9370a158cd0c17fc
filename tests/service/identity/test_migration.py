"""A store of the version before prefixes is taken over with its identities."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.chassis.labels import LabelSet
from services.chassis.migrate import migrations_directory
from services.identity.prefix_store import PrefixStore
from services.identity.reserved import PREFIX_FIRST
from services.identity.store import IdentityStore

WEB = LabelSet(["k8s:app=web"])


async def test_a_former_store_is_taken_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/identity.db"
    former = tmp_path / "former" / "versions"
    former.mkdir(parents=True)
    shutil.copy(migrations_directory("services.identity.migrations") / "versions" / "0001_initial.py", former)
    async with await Database.open(url, former.parent) as database:
        store = IdentityStore(database, Feed(database, "identities"), time.time_ns)
        before = await store.resolve(WEB, trace="")
    async with await Database.open(url, "services.identity.migrations") as database:
        feed = Feed(database, "identities")
        store = IdentityStore(database, feed, time.time_ns)
        assert await store.resolve(WEB, trace="") == before
        prefixes = PrefixStore(database, feed, time.time_ns)
        (made,) = await prefixes.resolve(["10.0.0.0/8"], trace="")
        assert (made.number, made.revision) == (PREFIX_FIRST, before.revision + 1)
        found, revision = await store.list(after=0, limit=None)
        assert (list(found), revision) == ([before, made], made.revision)
