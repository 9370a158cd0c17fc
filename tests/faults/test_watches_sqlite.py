"""Watch torture over SQLite: writers, compaction, kills and slow consumers beside each other."""

from __future__ import annotations

from services.chassis.db import Database
from tests.faults.storm import STORM_SECONDS, World
from tests.faults.torture import torture


async def test_what_watchers_have_rebuilt_is_the_table_at_every_revision(lone_identity: World) -> None:
    world = lone_identity
    async with await Database.open(world.identity.database_url, "services.identity.migrations") as database:
        await torture(world, database, STORM_SECONDS, world.identity.members)
