"""Allocation: many at once, a handful of statements for all of them.

Reads what there is, computes who gets what in memory (allocation.py), writes the result. It runs inside a
write of the database, so that nothing changes meanwhile, in whichever replica.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from opentelemetry.trace import Span
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.errors import Aborted, FimbriaError
from services.chassis.feed import Feed
from services.ipam import address_problems, address_rows, problems
from services.ipam.address_rows import HeldRow, OwnerKey, PoolRow, TakenRow
from services.ipam.address_search import FullCidrs, Search
from services.ipam.allocation import NodeCidr, NodeCidrs, Supply, bounds_of
from services.ipam.choice import choose
from services.ipam.exclusions import decode_spans, excluding
from services.ipam.family import FAMILIES, Address, Family, address_from_packed, of_family
from services.ipam.growth import read_selectors
from services.ipam.holds import is_over
from services.ipam.model import AddressPair, Allocation, Held, Mode, PoolSelectors, Workload

ANY: Final = AddressPair()

_SupplyKey: TypeAlias = "tuple[str, str, Family]"


@dataclass(frozen=True, slots=True)
class Asked:
    """Addresses for `owners` of a node, each once: for all of them or for none.

    `wanted` are particular ones, for a single owner; `pool` is empty when the request names none. The failure
    of a `batch` says for which owner there was nothing.
    """

    node: str
    owners: tuple[str, ...]
    wanted: AddressPair = ANY
    pool: str = ""
    workload: Workload | None = None
    trace: str | Span = ""
    batch: bool = False


@dataclass(slots=True, eq=False)
class _Plan:
    """What one request comes to: who gets addresses of which families out of which pool."""

    asked: Asked
    node: NodeCidrs
    takers: list[str]
    pool: str = ""
    families: tuple[Family, ...] = ()
    # The addresses asked for by name and the CIDRs that they are in.
    chosen: dict[Family, tuple[NodeCidr, Address]] = field(default_factory=dict)
    failure: FimbriaError | None = None
    # What there was no address in: how many are missing, or the release of the one asked for.
    refused: tuple[Supply, int | TakenRow] | None = None
    # For each family what the takers get.
    given: list[list[tuple[NodeCidr, int]]] = field(default_factory=list)


class Allocator:
    """Carries allocations out. `clock` returns Unix time in nanoseconds."""

    def __init__(self, feed: Feed, clock: Callable[[], int], mode: Mode, hold_ns: int) -> None:
        self.feed = feed
        self.clock = clock
        self.mode = mode
        self.hold_ns = hold_ns
        self.full = FullCidrs()
        self._stamp = 0

    async def together(
        self, connection: AsyncConnection, items: Sequence[Asked]
    ) -> Sequence[tuple[Allocation, ...] | FimbriaError]:
        """What each of `items` comes to, in their order; see services.chassis.db.Group."""
        now: list[Asked] = []
        later: list[int] = []
        seen: set[OwnerKey] = set()
        for index, asked in enumerate(items):
            keys = [(asked.node, owner) for owner in asked.owners]
            if seen.isdisjoint(keys):
                now.append(asked)
                seen.update(keys)
            else:
                # An owner that is here already: this one sees what the first has written.
                later.append(index)
        results = list(await _Turn(self, connection).carry_out(now))
        if later:
            rest = await self.together(connection, [items[index] for index in later])
            for index, result in zip(later, rest, strict=True):
                results.insert(index, result)
        return results

    def stamp(self, now_ns: int) -> int:
        """The creation time for what is allocated at `now_ns`.

        Differs from those before, which is how a late release knows its allocation from the owner's next.
        It follows the clock where that was set back by more than a second.
        """
        if self._stamp - 1_000_000_000 < now_ns <= self._stamp:
            now_ns = self._stamp + 1
        self._stamp = now_ns
        return now_ns


class _Turn:
    """One call's worth of allocations, of which no two are of the same owner."""

    def __init__(self, allocator: Allocator, connection: AsyncConnection) -> None:
        self._allocator = allocator
        self._connection = connection
        self._now_ns = allocator.clock()
        self._created_ns = allocator.stamp(self._now_ns)
        self._present: dict[OwnerKey, list[HeldRow]] = {}
        self._nodes: dict[str, NodeCidrs] = {}
        self._pools: dict[str, PoolRow] = {}
        self._supplies: dict[_SupplyKey, Supply] = {}
        # What was asked for by name and given, what is to be written, and the CIDRs whose cursors move.
        self._asked_for: dict[bytes, OwnerKey] = {}
        self._rows: list[tuple[str, str, Family, bytes, str, int]] = []
        self._moved: dict[str, NodeCidr] = {}
        self._search = Search(
            connection, allocator.feed, allocator.full, allocator.mode, allocator.hold_ns, self._now_ns
        )

    async def carry_out(self, items: Sequence[Asked]) -> Sequence[tuple[Allocation, ...] | FimbriaError]:
        keys = [(asked.node, owner) for asked in items for owner in asked.owners]
        self._nodes = await address_rows.read_nodes(self._connection, {asked.node for asked in items})
        self._present = await address_rows.read_present(self._connection, keys)
        plans = [self._begin(asked) for asked in items]
        await self._choose_pools([plan for plan in plans if isinstance(plan, _Plan) and plan.takers])
        going = [plan for plan in plans if isinstance(plan, _Plan) and plan.takers and not plan.failure]
        for plan in going:
            self._demand(plan)
        await self._search.run(self._supplies.values())
        results = await self._finish(plans, going)
        for asked, result in zip(items, results, strict=True):
            if asked.batch and isinstance(result, FimbriaError):
                result.metadata.setdefault("owner", asked.owners[0])
        return results

    def _begin(self, asked: Asked) -> _Plan | FimbriaError:
        node = self._nodes.get(asked.node)
        if node is None:
            return problems.node_not_found(asked.node)
        takers = [owner for owner in asked.owners if (asked.node, owner) not in self._present]
        if asked.wanted != ANY and not takers:
            (owner,) = asked.owners
            rows = self._present[asked.node, owner]
            for family in FAMILIES:
                wish = asked.wanted.of(family)
                if wish is not None and all(row.address != wish.packed for row in rows):
                    row = next((row for row in rows if row.family == family), rows[0])
                    held = address_from_packed(row.address)
                    return address_problems.owner_holds_another(owner, asked.node, held, wish)
        return _Plan(asked, node, takers)

    async def _choose_pools(self, plans: Sequence[_Plan]) -> None:
        """Sets pool, families and wanted addresses of `plans`, or their failures."""
        mode = self._allocator.mode
        selectors: Sequence[PoolSelectors] = ()
        if mode == "multi-pool" and any(plan.asked.workload and not plan.asked.pool for plan in plans):
            selectors = await read_selectors(self._connection)
        for plan in plans:
            asked = plan.asked
            try:
                plan.pool = choose(mode, plan.node.pool, asked.pool, asked.workload, selectors)
            except FimbriaError as exc:
                plan.failure = exc
                continue
            if plan.pool == plan.node.pool and not asked.pool:
                plan.pool = _pool_of_wanted(plan.node, asked.wanted) or plan.pool
        names = {plan.pool for plan in plans if plan.failure is None}
        self._pools = await address_rows.read_pools(self._connection, names) if names else {}
        for plan in plans:
            if plan.failure is None:
                plan.failure = self._check(plan)

    def _check(self, plan: _Plan) -> FimbriaError | None:
        """Sets the families and wanted addresses of `plan` as far as rows of others do not matter."""
        node, name = plan.node, plan.asked.node
        pool = self._pools.get(plan.pool)
        if pool is None:
            return problems.pool_not_found(plan.pool)
        of_node = [family for family in FAMILIES if node.router(family) is not None]
        plan.families = tuple(family for family in of_node if family in pool.families)
        if not plan.families:
            return address_problems.pool_family_mismatch(name, plan.pool, of_node, pool.families)
        for family in FAMILIES:
            wish = plan.asked.wanted.of(family)
            if wish is None:
                continue
            cidr = node.having(wish)
            if cidr is None or cidr.pool != plan.pool:
                networks = node.networks(plan.pool)
                return address_problems.address_not_on_node(
                    wish, name, networks or node.networks(), plan.pool
                )
            if (text := excluding(wish, decode_spans(pool.exclusions))) is not None:
                return address_problems.address_excluded(wish, name, plan.pool, text)
            if cidr.draining:
                return address_problems.address_draining(wish, name, plan.pool, cidr.bounds.network)
            if family not in plan.families:
                networks = tuple(one for other in plan.families for one in of_family(node.networks(), other))
                return address_problems.address_not_on_node(wish, name, networks, plan.pool)
            plan.chosen[family] = (cidr, wish)
        return None

    def _supply(self, plan: _Plan, family: Family) -> Supply:
        key = (plan.node.name, plan.pool, family)
        supply = self._supplies.get(key)
        if supply is None:
            exclusions = self._pools[plan.pool].exclusions
            supply = Supply(plan.node, plan.pool, family, exclusions, plan.asked.trace)
            self._supplies[key] = supply
        return supply

    def _demand(self, plan: _Plan) -> None:
        for family in plan.families:
            supply = self._supply(plan, family)
            if family in plan.chosen:
                supply.reserved.add(int(plan.chosen[family][1]))
            else:
                supply.demand += len(plan.takers)

    async def _finish(
        self, plans: Sequence[_Plan | FimbriaError], going: Sequence[_Plan]
    ) -> Sequence[tuple[Allocation, ...] | FimbriaError]:
        """Deals out what was found and writes it; see `carry_out` for the result."""
        for plan in going:
            plan.failure = self._refusal(plan)
            if plan.failure is None and plan.refused is None:
                self._give(plan)
        grown = any(supply.grown for supply in self._supplies.values())
        failed = any(plan.failure or plan.refused for plan in going)
        if grown and failed and len(plans) > 1:
            # Whoever fails must not leave CIDRs behind that were carved for it: each by itself, then.
            raise Aborted("these allocations cannot be carried out together", reason="CONFLICT")
        await self._write()
        await self._explain([plan for plan in going if plan.refused])
        if grown and going[0].failure is not None:
            raise going[0].failure
        return [
            plan if isinstance(plan, FimbriaError) else plan.failure or self._allocations(plan)
            for plan in plans
        ]

    async def _write(self) -> None:
        rows = self._rows
        await address_rows.insert_held(self._connection, rows)
        await address_rows.move_cursors(self._connection, self._moved.values())
        if self._search.over:
            over = [row[3] for row in rows if row[3] in self._search.over]
            await address_rows.delete_holds(self._connection, over)

    async def _explain(self, plans: Sequence[_Plan]) -> None:
        """Sets the failures of `plans` for which there was no address, with how full their CIDRs are."""
        known: dict[int, address_problems.Fullness] = {}
        for plan in plans:
            assert plan.refused is not None
            supply, refusal = plan.refused
            fullness = known.get(id(supply))
            if fullness is None:
                fullness = known[id(supply)] = await self._fullness(supply)
            if isinstance(refusal, int):
                plan.failure = address_problems.exhausted(fullness, self._allocator.mode, refusal)
                if plan.asked.batch:
                    plan.failure.metadata["owner"] = plan.takers[len(plan.takers) - refusal]
            else:
                plan.failure = address_problems.address_on_hold(
                    address_from_packed(refusal.address), refusal.owner, refusal.released_ns, fullness
                )

    def _refusal(self, plan: _Plan) -> FimbriaError | None:
        """Why `plan` cannot have what it wants, or sets `plan.refused` where that takes counting."""
        for family, (_, address) in plan.chosen.items():
            packed = address.packed
            if packed in self._asked_for:
                node, owner = self._asked_for[packed]
                return address_problems.address_in_use(address, owner, node)
            row = self._search.holders.get(packed)
            if row is None:
                continue
            if row.released_ns < 0:
                return address_problems.address_in_use(address, row.owner, row.node)
            plan.refused = (self._supply(plan, family), row)
            return None
        for family in plan.families:
            supply = self._supply(plan, family)
            if family not in plan.chosen and supply.left < len(plan.takers):
                plan.refused = (supply, len(plan.takers) - supply.left)
                return None
        return None

    def _give(self, plan: _Plan) -> None:
        """Gives the takers of `plan` what there is for them; it is to be written."""
        node, created_ns = plan.node.name, self._created_ns
        for family in plan.families:
            if family in plan.chosen:
                cidr, address = plan.chosen[family]
                self._asked_for[address.packed] = (node, plan.takers[0])
                picks = [(cidr, int(address) - cidr.bounds.base)]
            else:
                picks = self._supply(plan, family).give(len(plan.takers))
                for cidr, _ in picks:
                    self._moved[cidr.bounds.text] = cidr
            self._rows += [
                (node, owner, family, cidr.bounds.packed(slot), cidr.bounds.text, created_ns)
                for owner, (cidr, slot) in zip(plan.takers, picks, strict=True)
            ]
            plan.given.append(picks)

    def _allocations(self, plan: _Plan) -> tuple[Allocation, ...]:
        """What the owners of `plan` have, in their order."""
        node = plan.node
        routers = {family: router for family in FAMILIES if (router := node.router(family)) is not None}
        new = iter(zip(*plan.given, strict=True))
        found: list[Allocation] = []
        for owner in plan.asked.owners:
            rows = self._present.get((node.name, owner))
            if rows is None:
                held = tuple(
                    Held(cidr.bounds.address(slot), cidr.bounds.network, routers[cidr.bounds.family])
                    for cidr, slot in next(new)
                )
                found.append(Allocation(node.name, owner, held, self._created_ns, plan.pool))
            else:
                found.append(_present(node, owner, rows))
        return tuple(found)

    async def _fullness(self, supply: Supply) -> address_problems.Fullness:
        """How full the CIDRs of `supply` are, with what was just written."""
        cidrs = supply.node.usable(supply.pool, supply.family)
        texts = [cidr.bounds.text for cidr in cidrs]
        held, since_ns = await address_rows.count_held(self._connection, texts)
        hold_ns, now_ns = self._allocator.hold_ns, self._now_ns
        releases = await address_rows.read_releases(self._connection, texts)
        excluded = sum(supply.excluded_count(cidr) for cidr in cidrs)
        return address_problems.Fullness(
            node=supply.node.name,
            pool=supply.pool,
            family=supply.family,
            cidrs=tuple(cidr.bounds.network for cidr in cidrs),
            capacity=sum(cidr.bounds.last - cidr.bounds.first + 1 for cidr in cidrs) - excluded,
            excluded=excluded,
            held=held,
            since_ns=since_ns,
            releases_ns=[one for one in releases if not is_over(one, hold_ns, now_ns)],
            hold_ns=hold_ns,
            now_ns=now_ns,
        )


def _present(node: NodeCidrs, owner: str, rows: Sequence[HeldRow]) -> Allocation:
    """What an owner has had all along."""
    held: list[Held] = []
    pool = ""
    for row in rows:
        pool = node.pool_of(row.cidr)
        bounds = bounds_of(row.cidr)
        router = node.router(row.family) or bounds.router
        held.append(Held(address_from_packed(row.address), bounds.network, router))
    return Allocation(node.name, owner, tuple(held), min(row.created_ns for row in rows), pool)


def _pool_of_wanted(node: NodeCidrs, wanted: AddressPair) -> str:
    """The pool of the CIDR that a wanted address is in; empty when nothing is wanted or it is nowhere."""
    for family in FAMILIES:
        wish = wanted.of(family)
        cidr = node.having(wish) if wish is not None else None
        if cidr is not None:
            return cidr.pool
    return ""
