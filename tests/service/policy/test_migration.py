# SPDX-License-Identifier: Apache-2.0
"""A store of the version before prefixes is taken over, with its policies, nodes and feed."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.chassis.migrate import migrations_directory
from services.policy.manifest import parse_manifests
from services.policy.node_store import PORTS_FEED, Acknowledged, NodeStore, StoredNode
from services.policy.rules import PolicyRef
from services.policy.store import FEED, Outcome, PolicyStore
from services.policy.stored import StoredPolicy, change_of
from tests.service.policy.manifests import allow_client

WEB = PolicyRef("CiliumNetworkPolicy", "shop", "web")


async def make_former_store(url: str, tmp_path: Path) -> str:
    """A store as the first version left it, with one policy; its manifest."""
    former = tmp_path / "former" / "versions"
    former.mkdir(parents=True)
    shutil.copy(migrations_directory("services.policy.migrations") / "versions" / "0001_initial.py", former)
    (manifest,) = parse_manifests(allow_client("shop"))
    async with await Database.open(url, former.parent) as database:
        feed = Feed(database, FEED)

        async def write(connection: AsyncConnection) -> None:
            payload = {"manifest": manifest.text, "cookies": {"spec.ingress[0]": 1}, "updated_ns": 5}
            await feed.append(connection, "CiliumNetworkPolicy/shop/web", orjson.dumps(payload))
            await connection.execute(
                text("INSERT INTO policies VALUES ('CiliumNetworkPolicy', 'shop', 'web', 1, :manifest, 5)"),
                {"manifest": manifest.text},
            )
            await connection.execute(
                text(
                    "INSERT INTO rules (kind, namespace, name, path)"
                    " VALUES ('CiliumNetworkPolicy', 'shop', 'web', 'spec.ingress[0]')"
                )
            )
            await connection.execute(text("INSERT INTO nodes VALUES ('node-1', 1, 4, '', 9)"))

        await database.write(write)
    return manifest.text


async def test_a_former_store_is_taken_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/policy.db"
    text = await make_former_store(url, tmp_path)
    async with await Database.open(url, "services.policy.migrations") as database:
        feed = Feed(database, FEED)
        store = PolicyStore(database, feed, lambda: 11)
        nodes = NodeStore(database, Feed(database, PORTS_FEED), "a", lambda: 0)
        assert await nodes.load() == {"node-1": StoredNode(Acknowledged(1, 4, "", 9))}
        ((policy,), revision) = await store.load()
        assert (policy.ref, policy.manifest, policy.revision, revision) == (WEB, text, 1, 1)
        assert (policy.effective_revision, policy.prefixes, policy.source) == (1, {}, "")

        # The feed of before tells of the same policy.
        async for batch in feed.watch(0):
            change, complete = change_of(batch.events[0])
            break
        assert isinstance(change, StoredPolicy)
        assert complete
        assert change == policy

        # Now its lines are known, and it keeps its revision.
        applied = await store.apply(parse_manifests(allow_client("shop")), source="a.yaml")
        assert applied.policies[0].outcome is Outcome.UNCHANGED
        (policy,) = (await store.load())[0]
        assert (policy.revision, policy.source) == (1, "a.yaml")
        assert policy.bound.policy.lines["spec.ingress[0]"] > 1
