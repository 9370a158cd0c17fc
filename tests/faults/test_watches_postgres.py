"""Watch torture over PostgreSQL: the same with three replicas, and with kills of the database server too."""

from __future__ import annotations

from services.chassis.db import Database
from tests.faults.storm import STORM_SECONDS, World
from tests.faults.torture import torture


async def test_what_watchers_have_rebuilt_is_the_table_at_every_revision(three_identities: World) -> None:
    world = three_identities
    assert world.server is not None
    async with await Database.open(world.identity.database_url, "services.identity.migrations") as database:
        await torture(world, database, STORM_SECONDS, [*world.identity.members, world.server])
    assert world.server_kills
