"""Nodes as rows and as payloads of the node feed. Every change of a node is announced here."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.feed import Feed
from services.ipam.addresses import AddressRange
from services.ipam.family import family_of
from services.ipam.model import Node, NodeCidr
from services.ipam.schema import node_cidrs, nodes

NODE_FEED: Final = "nodes"
# How many names one statement carries: below the limits of both backends.
_NAMES: Final = 500

_NODE = select(nodes).where(nodes.c.name == bindparam("name"))
_NODES = select(nodes).where(nodes.c.name > bindparam("after")).order_by(nodes.c.name)
_NAMED = select(nodes).where(nodes.c.name.in_(bindparam("names", expanding=True))).order_by(nodes.c.name)
_CIDRS = select(node_cidrs.c.cidr, node_cidrs.c.node, node_cidrs.c.pool, node_cidrs.c.draining).order_by(
    node_cidrs.c.node, node_cidrs.c.position
)
_CIDRS_OF_NODES = _CIDRS.where(node_cidrs.c.node.in_(bindparam("names", expanding=True)))
_SET_REVISION = (
    update(nodes).where(nodes.c.name == bindparam("of_name")).values(revision=bindparam("to_revision"))
)
_LAST_POSITION = select(func.max(node_cidrs.c.position)).where(node_cidrs.c.node == bindparam("node"))


def encode_node(node: Node) -> bytes:
    """The payload of a node's event. The revision is left out: it is the event's own."""
    return orjson.dumps(
        {
            "ipv4": str(node.ipv4),
            "ipv6": None if node.ipv6 is None else str(node.ipv6),
            "pool": node.pool,
            # What replicas of the version before read.
            "pod_cidrs": [str(cidr) for cidr in node.pod_cidrs],
            "cidrs": [[str(cidr.network), cidr.pool, cidr.draining] for cidr in node.cidrs],
            "created_ns": node.created_ns,
        }
    )


def decode_node(name: str, payload: bytes, revision: int) -> Node:
    """The inverse of `encode_node`, also of payloads from before nodes had `ipv6` or `cidrs`."""
    fields = orjson.loads(payload)
    ipv6 = fields.get("ipv6")
    cidrs = fields.get("cidrs") or [[text, fields["pool"], False] for text in fields["pod_cidrs"]]
    return Node(
        name=name,
        ipv4=ipaddress.IPv4Address(fields["ipv4"]),
        pool=fields["pool"],
        cidrs=tuple(NodeCidr(ipaddress.ip_network(text), pool, draining) for text, pool, draining in cidrs),
        created_ns=fields["created_ns"],
        ipv6=ipaddress.IPv6Address(ipv6) if ipv6 else None,
        revision=revision,
    )


async def read_node(connection: AsyncConnection, name: str) -> Node | None:
    """The node of that name, None when there is none."""
    rows = (await connection.execute(_NODE, {"name": name})).all()
    return next(iter(await _with_cidrs(connection, rows)), None)


async def read_nodes(connection: AsyncConnection, *, after: str, limit: int | None) -> list[Node]:
    """Up to `limit` nodes by name past `after`."""
    rows = (await connection.execute(_NODES.limit(limit), {"after": after})).all()
    return await _with_cidrs(connection, rows)


async def announce(connection: AsyncConnection, feed: Feed, names: Collection[str], trace: str) -> list[Node]:
    """Tells the feed what the nodes of `names` are by now, and returns them with their new revisions.

    The last step of every write that changes what nodes hold.
    """
    present: list[Node] = []
    wanted = sorted(names)
    for start in range(0, len(wanted), _NAMES):
        rows = await connection.execute(_NAMED, {"names": wanted[start : start + _NAMES]})
        present += await _with_cidrs(connection, rows.all())
    if not present:
        return []
    changes = [(node.name, encode_node(node), False) for node in present]
    last = await feed.append_all(connection, changes, trace)
    told = [
        replace(node, revision=revision)
        for revision, node in enumerate(present, start=last - len(present) + 1)
    ]
    await connection.execute(
        _SET_REVISION, [{"of_name": node.name, "to_revision": node.revision} for node in told]
    )
    return told


async def insert_cidrs(
    connection: AsyncConnection, node: str, cidrs: Sequence[NodeCidr], *, position: int | None = None
) -> None:
    """Gives the node `cidrs`, in this order: from `position` on, or behind what it has."""
    if not cidrs:
        return
    if position is None:
        position = await next_position(connection, node)
    ranges = [AddressRange(cidr.network) for cidr in cidrs]
    await connection.execute(
        insert(node_cidrs),
        [
            {
                "cidr": str(cidr.network),
                "node": node,
                "pool": cidr.pool,
                "position": at,
                "next_address": bounds.address(bounds.first).packed,
                "family": family_of(cidr.network),
                "draining": cidr.draining,
            }
            for at, (cidr, bounds) in enumerate(zip(cidrs, ranges, strict=True), start=position)
        ],
    )


async def next_position(connection: AsyncConnection, node: str) -> int:
    """The position behind the node's last CIDR."""
    last: int | None = (await connection.execute(_LAST_POSITION, {"node": node})).scalar()
    return 0 if last is None else last + 1


async def _with_cidrs(connection: AsyncConnection, rows: Sequence[Any]) -> list[Node]:
    by_node: dict[str, list[NodeCidr]] = {row.name: [] for row in rows}
    names = list(by_node)
    for start in range(0, len(names), _NAMES):
        found = await connection.execute(_CIDRS_OF_NODES, {"names": names[start : start + _NAMES]})
        for row in found.all():
            cidr = NodeCidr(ipaddress.ip_network(row.cidr), row.pool, bool(row.draining))
            by_node[row.node].append(cidr)
    return [
        Node(
            name=row.name,
            ipv4=ipaddress.IPv4Address(row.ipv4),
            pool=row.pool,
            cidrs=tuple(by_node[row.name]),
            created_ns=row.created_ns,
            ipv6=ipaddress.IPv6Address(row.ipv6) if row.ipv6 else None,
            revision=row.revision,
        )
        for row in rows
    ]
