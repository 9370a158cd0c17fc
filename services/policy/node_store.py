# SPDX-License-Identifier: Apache-2.0
"""The nodes that enforce policy, and how far each has come. A node that is down still counts until
forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.policy.engine import Subject
from services.policy.rules import NamedPort, Protocol
from services.policy.schema import declared_ports, nodes

_NODES = select(nodes).order_by(nodes.c.name)
_ADD = insert(nodes)
_DROP = delete(nodes).where(nodes.c.name == bindparam("of_name"))
_PORTS = select(declared_ports)
_ADD_PORTS = insert(declared_ports)
_DROP_PORTS = delete(declared_ports).where(declared_ports.c.node == bindparam("of_name"))


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What a node has acknowledged last: revisions, why it came no further, Unix time in nanoseconds (0:
    never).
    """

    policy: int = 0
    identity: int = 0
    error: str = ""
    updated_ns: int = 0


class NodeStore:
    """The persisted side of enforcement."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> dict[str, Acknowledged]:
        async with self._database.read() as connection:
            rows = (await connection.execute(_NODES)).all()
        return {
            row.name: Acknowledged(row.policy_revision, row.identity_revision, row.error, row.updated_ns)
            for row in rows
        }

    async def save(self, acknowledged: Sequence[tuple[str, Acknowledged]]) -> None:
        """Add or replace the state of nodes."""

        async def operation(connection: AsyncConnection) -> None:
            await connection.execute(_DROP, [{"of_name": name} for name, _ in acknowledged])
            await connection.execute(
                _ADD,
                [
                    {
                        "name": name,
                        "policy_revision": state.policy,
                        "identity_revision": state.identity,
                        "error": state.error,
                        "updated_ns": state.updated_ns,
                    }
                    for name, state in acknowledged
                ],
            )

        if acknowledged:
            await self._database.write(operation)

    async def forget(self, name: str) -> None:
        async def operation(connection: AsyncConnection) -> None:
            await connection.execute(_DROP, {"of_name": name})
            await connection.execute(_DROP_PORTS, {"of_name": name})

        await self._database.write(operation)

    async def load_ports(self) -> dict[str, list[Subject]]:
        """What each node declared last."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_PORTS)).all()
        found: dict[str, list[Subject]] = {}
        for row in rows:
            ports = tuple(
                NamedPort(name, Protocol(protocol), port) for name, protocol, port in orjson.loads(row.ports)
            )
            found.setdefault(row.node, []).append(Subject(row.identity, ports))
        return found

    async def save_ports(self, name: str, subjects: Iterable[Subject]) -> None:
        """Replace what a node declares."""
        rows = [
            {
                "node": name,
                "identity": subject.identity,
                "ports": orjson.dumps([[p.name, int(p.protocol), p.port] for p in subject.ports]).decode(),
            }
            for subject in subjects
        ]

        async def operation(connection: AsyncConnection) -> None:
            await connection.execute(_DROP_PORTS, {"of_name": name})
            if rows:
                await connection.execute(_ADD_PORTS, rows)

        await self._database.write(operation)
