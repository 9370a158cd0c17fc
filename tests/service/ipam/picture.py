"""What the tables of ipam say, read without the code that wrote them, and what must be true of it.

For small CIDRs: everything here counts addresses one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from sqlalchemy import text

from services.chassis.db import Database
from services.ipam.exclusions import decode_spans
from services.ipam.family import FAMILIES, Address, Family, Network, address_from_packed
from services.ipam.model import DrainingCidr, Node, Pool, PoolUsage
from services.ipam.node_rows import decode_node


@dataclass(frozen=True)
class CidrRow:
    """A CIDR of a node."""

    network: Network
    node: str
    pool: str
    draining: bool

    def slots(self) -> set[Address]:
        """The addresses that pods may have unless the pool excludes them."""
        last = self.network.num_addresses - (1 if self.network.version == 4 else 0)
        return {self.network[slot] for slot in range(2, last)}


@dataclass(frozen=True)
class Picture:
    """All tables at one moment."""

    masks: dict[str, dict[Family, int]]
    excluded: dict[str, set[Address]]
    # Pool CIDRs by pool: in service and draining.
    in_service: dict[str, list[Network]]
    draining: dict[str, list[Network]]
    nodes: dict[str, str]
    # By position.
    cidrs: dict[str, list[CidrRow]]
    # Address -> (node, owner, CIDR, creation time), and -> (release time, CIDR).
    held: dict[Address, tuple[str, str, Network, int]]
    holds: dict[Address, tuple[int, Network]]
    # Nodes as the feed has told them, and the revision of each that the nodes' table has.
    told: dict[str, Node]
    revisions: dict[str, int]

    @classmethod
    async def read(cls, database: Database, since: int = 0) -> Picture:
        """The tables in one snapshot, with the events of the feed past revision `since`."""
        async with database.read() as connection:

            async def rows(statement: str) -> list[tuple[Any, ...]]:
                return [tuple(row) for row in (await connection.execute(text(statement))).all()]

            pools = await rows("SELECT name, node_mask_size, node_mask_size_ipv6, excluded FROM pools")
            pool_cidrs = await rows("SELECT pool, cidr, draining FROM pool_cidrs ORDER BY position")
            nodes = await rows("SELECT name, pool, revision FROM nodes")
            cidrs = await rows("SELECT node, cidr, pool, draining FROM node_cidrs ORDER BY position")
            held = await rows("SELECT address, node, owner, cidr, created_ns, family FROM addresses")
            holds = await rows("SELECT address, released_ns, cidr, family FROM holds")
            events = await rows(
                "SELECT revision, key, payload, deleted FROM feed_event WHERE feed = 'nodes'"
                f" AND revision > {since} ORDER BY revision"
            )
        told: dict[str, Node] = {}
        for revision, key, payload, deleted in events:
            if deleted:
                told.pop(str(key), None)
            else:
                told[str(key)] = decode_node(str(key), bytes(payload), int(revision))
        by_node: dict[str, list[CidrRow]] = {str(name): [] for name, _, _ in nodes}
        for node, cidr, pool, draining in cidrs:
            row = CidrRow(ip_network(str(cidr)), str(node), str(pool), bool(draining))
            by_node[row.node].append(row)
        for packed, *_, family in [*held, *holds]:
            assert _address(packed).version == family
        return cls(
            masks={str(name): {4: mask, 6: int(mask6)} for name, mask, mask6, _ in pools},
            excluded={str(name): _addresses(str(spans)) for name, _, _, spans in pools},
            in_service=_by_pool(pools, pool_cidrs, draining=False),
            draining=_by_pool(pools, pool_cidrs, draining=True),
            nodes={str(name): str(pool) for name, pool, _ in nodes},
            cidrs=by_node,
            held={
                _address(packed): (str(node), str(owner), ip_network(str(cidr)), int(created_ns))
                for packed, node, owner, cidr, created_ns, _ in held
            },
            holds={
                _address(packed): (int(released_ns), ip_network(str(cidr)))
                for packed, released_ns, cidr, _ in holds
            },
            told=told,
            revisions={str(name): int(revision) for name, _, revision in nodes},
        )

    def check(self) -> None:
        """What is true at every moment."""
        rows = [row for of_node in self.cidrs.values() for row in of_node]
        for at, row in enumerate(rows):
            assert not any(row.network.overlaps(other.network) for other in rows[:at]), row
            around = [
                (cidr, cidr in self.draining[row.pool])
                for cidr in (*self.in_service[row.pool], *self.draining[row.pool])
                if cidr.version == row.network.version
                and int(cidr.network_address) <= int(row.network.network_address)
                and int(row.network.broadcast_address) <= int(cidr.broadcast_address)
            ]
            assert [draining for _, draining in around] == [row.draining], row
            assert row.network.prefixlen == self.masks[row.pool][4 if row.network.version == 4 else 6]
        for networks in self.draining.values():
            for cidr in networks:
                assert any(row.network.overlaps(cidr) for row in rows), f"{cidr} has drained away"
        for address, (node, _, cidr, _) in self.held.items():
            (row,) = [row for row in rows if address in row.network]
            assert (row.node, row.network) == (node, cidr)
            assert address in row.slots()
        for address, (_, cidr) in self.holds.items():
            assert cidr in [row.network for row in rows] and address in cidr
            assert address not in self.held
        assert {
            name: [(one.network, one.pool, one.draining) for one in node.cidrs]
            for name, node in self.told.items()
        } == {
            name: [(row.network, row.pool, row.draining) for row in of_node]
            for name, of_node in self.cidrs.items()
        }, "what watchers were told is what there is"
        assert {name: node.revision for name, node in self.told.items()} == self.revisions

    def firsts(self) -> dict[tuple[str, int], Network]:
        """The CIDR with the router address, for each node and family."""
        return {
            (node, row.network.version): row.network
            for node, rows in self.cidrs.items()
            for row in rows[::-1]
        }

    def families(self, node: str, pool: str) -> list[Family]:
        """The families that an allocation has."""
        of_node = {row.network.version for row in self.cidrs[node]}
        of_pool = {cidr.version for cidr in self.in_service[pool]}
        return [family for family in FAMILIES if family in of_node & of_pool]

    def on_hold(self, now_ns: int, hold_ns: int) -> set[Address]:
        """The addresses whose holds are not over."""
        return {address for address, (released_ns, _) in self.holds.items() if released_ns > now_ns - hold_ns}

    def free(self, node: str, pool: str, family: Family) -> set[Address]:
        """What the node could give of the pool, on hold or not."""
        found: set[Address] = set()
        for row in self.cidrs[node]:
            if row.pool == pool and row.network.version == family and not row.draining:
                found |= row.slots() - self.excluded[pool] - self.held.keys()
        return found

    def carveable(self, pool: str, family: Family, *, router: bool) -> list[Network]:
        """The networks that a node could still get of the pool."""
        taken = {row.network for rows in self.cidrs.values() for row in rows}
        found = []
        for cidr in self.in_service.get(pool, ()):
            if cidr.version != family:
                continue
            for network in cidr.subnets(new_prefix=self.masks[pool][family]):
                row = CidrRow(network, "", pool, False)
                if network in taken or not row.slots() - self.excluded[pool]:
                    continue
                if not router or network[1] not in self.excluded[pool]:
                    found.append(network)
        return found

    def usage(self, pool: str, now_ns: int, hold_ns: int) -> tuple[PoolUsage, ...]:
        """How full the pool is."""
        on_hold = self.on_hold(now_ns, hold_ns)
        usage = []
        for family in FAMILIES:
            rows = [
                row
                for of_node in self.cidrs.values()
                for row in of_node
                if row.pool == pool and row.network.version == family
            ]
            in_service = [cidr for cidr in self.in_service[pool] if cidr.version == family]
            if not rows and not in_service:
                continue
            slots = {address for row in rows for address in row.slots()}
            left = slots - self.excluded[pool]
            mask = self.masks[pool][family]
            usage.append(
                PoolUsage(
                    family,
                    sum(1 << (mask - cidr.prefixlen) for cidr in in_service),
                    len(rows),
                    capacity=len(left),
                    held=len(left & self.held.keys()),
                    on_hold=len(left & on_hold),
                    excluded=len(slots - left),
                )
            )
        return tuple(usage)

    def drains(self, pool: str) -> tuple[DrainingCidr, ...]:
        """What is left in the pool's CIDRs that drain."""
        rows = [row.network for of_node in self.cidrs.values() for row in of_node]
        return tuple(
            DrainingCidr(
                cidr,
                sum(row.overlaps(cidr) for row in rows),
                sum(address in cidr for address in (*self.held, *self.holds)),
            )
            for cidr in self.draining[pool]
        )

    def agrees(self, pool: Pool, now_ns: int, hold_ns: int) -> None:
        """The pool as the store returned it is the one of the tables."""
        assert list(pool.cidrs) == self.in_service[pool.name]
        assert pool.draining == self.drains(pool.name)
        assert pool.usage == self.usage(pool.name, now_ns, hold_ns)
        assert pool.used == len(
            {row.node for rows in self.cidrs.values() for row in rows if row.pool == pool.name}
        )


def _address(packed: bytes) -> Address:
    return address_from_packed(bytes(packed))


def _addresses(spans: str) -> set[Address]:
    found: set[Address] = set()
    for span in decode_spans(spans):
        size = 4 if span.family == 4 else 16
        numbers = range(span.first, span.last + 1)
        found |= {address_from_packed(number.to_bytes(size, "big")) for number in numbers}
    return found


def _by_pool(
    pools: list[tuple[Any, ...]], pool_cidrs: list[tuple[Any, ...]], *, draining: bool
) -> dict[str, list[Network]]:
    found: dict[str, list[Network]] = {str(row[0]): [] for row in pools}
    for pool, cidr, drains in pool_cidrs:
        if bool(drains) is draining:
            found[str(pool)].append(ip_network(str(cidr)))
    return found
