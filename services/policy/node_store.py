# SPDX-License-Identifier: Apache-2.0
"""The nodes that enforce policy, and how far each has come. A node that is down still counts until
forgotten.

Several processes of this service (replicas) may share the store. A node belongs to the replica that it
subscribed to last; only that one writes what the node says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed, FeedEvent
from services.policy.engine import Subject
from services.policy.rules import NamedPort, Protocol
from services.policy.schema import declared_ports, nodes, replicas

PORTS_FEED = "ports"
# A replica that has not been heard of for so long is gone, and with it the streams that it had.
REPLICA_SECONDS = 10.0

_STATES = select(
    nodes.c.name,
    nodes.c.policy_revision,
    nodes.c.identity_revision,
    nodes.c.error,
    nodes.c.updated_ns,
    nodes.c.replica,
    nodes.c.failed,
).order_by(nodes.c.name)
_WATCHED = select(nodes.c.name, nodes.c.watched).where(nodes.c.replica != bindparam("but"))
_OWNER = select(nodes.c.replica).where(nodes.c.name == bindparam("of_name"))
_ADD = insert(nodes)
_PUT = (
    update(nodes)
    .where(nodes.c.name == bindparam("of_name"))
    .values(
        policy_revision=bindparam("to_policy"),
        identity_revision=bindparam("to_identity"),
        error=bindparam("to_error"),
        updated_ns=bindparam("to_time"),
        replica=bindparam("to_replica"),
        failed=bindparam("to_failed"),
    )
)
_PUT_WATCHED = (
    update(nodes)
    .where(nodes.c.name == bindparam("of_name"), nodes.c.replica.in_(("", bindparam("of_replica"))))
    .values(watched=bindparam("to_watched"))
)
_DROP = delete(nodes).where(nodes.c.name == bindparam("of_name"))
_PORTS = select(declared_ports)
_PORTS_OF = _PORTS.where(declared_ports.c.node == bindparam("of_name"))
_ADD_PORTS = insert(declared_ports)
_DROP_PORTS = delete(declared_ports).where(declared_ports.c.node == bindparam("of_name"))
_REPLICAS = select(replicas.c.id).where(replicas.c.seen_ns > bindparam("after"))
_ADD_REPLICA = insert(replicas)
_DROP_REPLICA = delete(replicas).where(replicas.c.id == bindparam("of_id"))
_DROP_STALE = delete(replicas).where(replicas.c.seen_ns <= bindparam("upto"))


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What a node has acknowledged last: revisions, why it came no further, Unix time in nanoseconds (0:
    never).
    """

    policy: int = 0
    identity: int = 0
    error: str = ""
    updated_ns: int = 0


@dataclass(frozen=True, slots=True)
class StoredNode:
    """A node in the store. `replica` is the one whose stream it is on, empty when on none; `failed` are the
    subjects that it could not realize.
    """

    acknowledged: Acknowledged
    replica: str = ""
    failed: frozenset[Subject] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeSave:
    """What a replica has to say of a node: its state, whether the node is subscribed here, and whether it has
    come here since the last save (`claim`).
    """

    name: str
    acknowledged: Acknowledged
    failed: frozenset[Subject]
    subscribed: bool
    claim: bool


class NodeStore:
    """The persisted side of enforcement, as the replica `replica` uses it. `clock` returns Unix time in
    nanoseconds.
    """

    def __init__(self, database: Database, ports: Feed, replica: str, clock: Callable[[], int]) -> None:
        self.replica = replica
        self._database = database
        self._ports = ports
        self._clock = clock

    async def load(self) -> dict[str, StoredNode]:
        """Every node; on no replica where its replica is gone."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_STATES)).all()
            after = self._clock() - int(REPLICA_SECONDS * 1e9)
            alive = set((await connection.execute(_REPLICAS, {"after": after})).scalars())
        return {
            row.name: StoredNode(
                Acknowledged(row.policy_revision, row.identity_revision, row.error, row.updated_ns),
                row.replica if row.replica in alive or row.replica == self.replica else "",
                _subjects(row.failed),
            )
            for row in rows
        }

    async def load_watched(self) -> dict[str, frozenset[Subject]]:
        """The subjects that each node that is not on this replica watched when it was heard of last."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_WATCHED, {"but": self.replica})).all()
        return {row.name: _subjects(row.watched) for row in rows}

    async def save(self, saves: Sequence[NodeSave]) -> set[str]:
        """Store the states of nodes. Returns those that are another replica's by now, and were left alone."""

        async def operation(connection: AsyncConnection) -> set[str]:
            return {save.name for save in saves if not await self._save_one(connection, save)}

        return await self._database.write(operation) if saves else set()

    async def save_watched(self, watched: Mapping[str, Iterable[Subject]]) -> None:
        """Store which subjects nodes watch that are on this replica, or have left it for none other."""
        rows = [
            {"of_name": name, "of_replica": self.replica, "to_watched": _encoded(subjects)}
            for name, subjects in watched.items()
        ]

        async def operation(connection: AsyncConnection) -> None:
            await connection.execute(_PUT_WATCHED, rows)

        if rows:
            await self._database.write(operation)

    async def forget(self, name: str) -> None:
        async def operation(connection: AsyncConnection) -> None:
            await connection.execute(_DROP, {"of_name": name})
            if (await connection.execute(_DROP_PORTS, {"of_name": name})).rowcount:
                await self._ports.append(connection, name, b"", deleted=True)

        await self._database.write(operation)

    # -- replicas

    async def heartbeat(self) -> None:
        """Say that this replica is there; forget those that are long gone."""
        now = self._clock()

        async def operation(connection: AsyncConnection) -> None:
            await connection.execute(_DROP_STALE, {"upto": now - int(REPLICA_SECONDS * 1e9)})
            await connection.execute(_DROP_REPLICA, {"of_id": self.replica})
            await connection.execute(_ADD_REPLICA, {"id": self.replica, "seen_ns": now})

        await self._database.write(operation)

    async def leave(self) -> None:
        """This replica ends."""

        async def operation(connection: AsyncConnection) -> None:
            await connection.execute(_DROP_REPLICA, {"of_id": self.replica})

        await self._database.write(operation)

    # -- declared ports

    async def load_ports(self) -> tuple[dict[str, list[Subject]], int]:
        """What each node declared last, and the revision of the feed of ports that has it."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_PORTS)).all()
            revision = await self._ports.revision_at(connection)
        found: dict[str, list[Subject]] = {}
        for row in rows:
            found.setdefault(row.node, []).append(Subject(row.identity, _ports(orjson.loads(row.ports))))
        return found, revision

    async def load_ports_of(self, name: str) -> list[Subject]:
        """What one node declared last."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_PORTS_OF, {"of_name": name})).all()
        return [Subject(row.identity, _ports(orjson.loads(row.ports))) for row in rows]

    async def save_ports(self, name: str, subjects: Iterable[Subject]) -> None:
        """Replace what a node declares, unless it is another replica's node by now."""
        declared = sorted(subjects, key=lambda subject: (subject.identity, subject.ports))
        rows = [
            {
                "node": name,
                "identity": subject.identity,
                "ports": orjson.dumps([[p.name, int(p.protocol), p.port] for p in subject.ports]).decode(),
            }
            for subject in declared
        ]

        async def operation(connection: AsyncConnection) -> None:
            owner = (await connection.execute(_OWNER, {"of_name": name})).scalar_one_or_none()
            if owner not in (None, "", self.replica):
                return
            await connection.execute(_DROP_PORTS, {"of_name": name})
            if rows:
                await connection.execute(_ADD_PORTS, rows)
            payload = {"replica": self.replica, "subjects": _plain(declared)}
            await self._ports.append(connection, name, orjson.dumps(payload))

        await self._database.write(operation)

    async def _save_one(self, connection: AsyncConnection, save: NodeSave) -> bool:
        owner = (await connection.execute(_OWNER, {"of_name": save.name})).scalar_one_or_none()
        told = save.acknowledged
        state = {
            "to_policy": told.policy,
            "to_identity": told.identity,
            "to_error": told.error,
            "to_time": told.updated_ns,
            "to_replica": self.replica if save.subscribed else "",
            "to_failed": _encoded(save.failed),
        }
        if owner is None:
            if not save.claim:
                # Forgotten meanwhile, by way of another replica.
                return False
            await connection.execute(
                _ADD,
                {
                    "name": save.name,
                    "policy_revision": told.policy,
                    "identity_revision": told.identity,
                    "error": told.error,
                    "updated_ns": told.updated_ns,
                    "replica": state["to_replica"],
                    "watched": "[]",
                    "failed": state["to_failed"],
                },
            )
            return True
        if owner != self.replica and not (save.claim and (save.subscribed or not owner)):
            return False
        await connection.execute(_PUT, {"of_name": save.name, **state})
        return True


def ports_of(event: FeedEvent) -> tuple[str, list[Subject]]:
    """(replica that wrote it, what the node declares now) of an event of the feed of ports."""
    if event.deleted:
        return "", []
    payload = orjson.loads(event.payload)
    return payload["replica"], [_subject(item) for item in payload["subjects"]]


def _ports(items: Iterable[Sequence[object]]) -> tuple[NamedPort, ...]:
    return tuple(
        NamedPort(str(name), Protocol(int(str(protocol))), int(str(port))) for name, protocol, port in items
    )


def _plain(subjects: Iterable[Subject]) -> list[list[object]]:
    return [
        [s.identity, [[p.name, int(p.protocol), p.port] for p in s.ports], list(s.labels)] for s in subjects
    ]


def _encoded(subjects: Iterable[Subject]) -> str:
    listed = sorted(subjects, key=lambda subject: (subject.identity, subject.ports, subject.labels))
    return orjson.dumps(_plain(listed)).decode()


def _subjects(text: str) -> frozenset[Subject]:
    return frozenset(_subject(item) for item in orjson.loads(text)) if text != "[]" else frozenset()


def _subject(item: Sequence[object]) -> Subject:
    identity, ports, labels = item
    return Subject(identity, _ports(ports), tuple(labels))  # type: ignore[arg-type]
