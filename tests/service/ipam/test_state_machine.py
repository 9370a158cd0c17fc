"""Random histories of the whole of IPAM: pools, nodes, addresses, clocks and two replicas over one store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.errors import FimbriaError
from services.ipam.exclusions import Span, parse_all
from services.ipam.family import FAMILIES, Address, Family, Network, of_family
from services.ipam.model import AddressPair, Allocation
from services.ipam.plan import PoolContent, plan_pool
from services.ipam.schema import addresses, holds, node_cidrs, nodes, pool_cidrs, pools
from tests.postgres import STORES, fresh_database
from tests.service.ipam.picture import Picture
from tests.service.ipam.stores import SECOND, Clocks, World, pair

T = TypeVar("T")

HOLD_SECONDS = 30
HOLD_NS = HOLD_SECONDS * SECOND
IDLE_SECONDS = 60
# Each CIDR of a pool is cut into two for nodes: five IPv4 or six IPv6 addresses each.
MASKS: dict[Family, int] = {4: 29, 6: 125}
EXAMPLES = {"sqlite": 18, "postgresql": 6}


@dataclass(frozen=True)
class Content:
    """What a pool shall consist of: which of its possible CIDRs, and what of each is excluded."""

    ipv4: frozenset[int]
    ipv6: frozenset[int]
    excluded: tuple[tuple[int, int, int], ...]

    def cidrs(self, pool: int) -> tuple[Network, ...]:
        return (
            *(ip_network(f"10.{pool}.0.{16 * at}/28") for at in sorted(self.ipv4, key=lambda at: -at)),
            *(ip_network(f"fd0{pool}::{at}0/124") for at in sorted(self.ipv6)),
        )

    def spans(self, pool: int) -> tuple[Span, ...]:
        cidrs = self.cidrs(pool)
        return parse_all(
            [
                f"{cidrs[at % len(cidrs)][min(first, last)]}-{cidrs[at % len(cidrs)][max(first, last)]}"
                for at, first, last in self.excluded
            ],
            "excluded",
        )


CONTENTS = st.builds(
    Content,
    ipv4=st.frozensets(st.integers(0, 2), max_size=3),
    ipv6=st.frozensets(st.integers(0, 1), max_size=2),
    excluded=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 15), st.integers(0, 15)), max_size=2).map(
        tuple
    ),
)
NUMBERS = st.integers(0, 2)
# One of those that are there, by its place in their order, or any of those that could be.
SOME = st.integers(0, 5) | NUMBERS.map(lambda number: -1 - number)
OWNERS = st.integers(0, 13).map(lambda number: f"c{number}")
REPLICAS = st.integers(0, 1)
RARELY = st.sampled_from([False, False, False, True])


class Stage:
    """Two replicas over one store, driven from synchronous code."""

    def __init__(self, runner: asyncio.Runner, replicas: list[World]) -> None:
        self.runner = runner
        self.replicas = replicas
        self.clocks = replicas[0].clocks
        self.revision = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def picture(self) -> Picture:
        return self.run(Picture.read(self.replicas[0].database, self.revision))

    def clear(self) -> None:
        """Empties the tables; the feed goes on."""

        async def operation(connection: AsyncConnection) -> int:
            for table in (addresses, holds, node_cidrs, nodes, pool_cidrs, pools):
                await connection.execute(delete(table))
            return await self.replicas[0].feed.revision_at(connection)

        self.revision = self.run(self.replicas[0].database.write(operation))


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stage(kind: str, tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path}/ipam.db"
        else:
            url = stack.enter_context(fresh_database("ipam"))
        runner = stack.enter_context(asyncio.Runner())
        worlds = AsyncExitStack()
        stack.callback(lambda: runner.run(worlds.aclose()))

        async def open_both() -> list[World]:
            clocks = Clocks()
            return [
                await worlds.enter_async_context(
                    World.open(url, hold_seconds=HOLD_SECONDS, idle_seconds=IDLE_SECONDS, clocks=clocks)
                )
                for _ in range(2)
            ]

        yield Stage(runner, runner.run(open_both()))


async def attempt(work: Awaitable[T]) -> T | FimbriaError:
    """What `work` comes to, a refusal included."""
    try:
        return await work
    except FimbriaError as exc:
        return exc


def test_every_history_keeps_what_ipam_promises(kind: str, stage: Stage) -> None:
    class Calls(Histories):
        pass

    Calls.stage = stage
    run_state_machine_as_test(
        Calls,
        settings=settings(max_examples=EXAMPLES[kind], stateful_step_count=40, deadline=None),
    )


class Histories(RuleBasedStateMachine):
    """Calls of any kind in any order, each followed by a look at all tables."""

    stage: ClassVar[Stage]

    def __init__(self) -> None:
        super().__init__()
        self.stage.clear()
        self.seen = self.stage.picture()
        # What was acknowledged, and when what was released.
        self.held: dict[tuple[str, str], Allocation] = {}
        self.released: dict[Address, int] = {}
        # When a CIDR of a node was last seen in use or is new, by the monotonic clock.
        self.used: dict[Network, float] = {}

    @property
    def now(self) -> int:
        return self.stage.clocks.wall

    def node(self, some: int) -> str:
        """The node that one of SOME means."""
        return _one_of(sorted(self.seen.nodes), some) or f"n{-1 - some if some < 0 else 0}"

    def pool(self, some: int) -> str:
        """The pool that one of SOME means."""
        return _one_of(sorted(self.seen.masks), some) or f"p{-1 - some if some < 0 else 0}"

    def call(self, work: Awaitable[T]) -> T | FimbriaError:
        return self.stage.run(attempt(work))

    @initialize(pool=CONTENTS, other=CONTENTS)
    def begin(self, pool: Content, other: Content) -> None:
        self.create_pool(0, replace(pool, ipv4=pool.ipv4 | {0, 1}), 0)
        self.create_pool(1, other, 1)
        for node in (0, 1):
            self.register(node, 0, node)

    @rule(pool=NUMBERS, content=CONTENTS, replica=REPLICAS)
    def create_pool(self, pool: int, content: Content, replica: int) -> None:
        cidrs = content.cidrs(pool)
        if not cidrs:
            return
        mask, mask6 = (MASKS[family] if of_family(cidrs, family) else 0 for family in FAMILIES)
        planned = plan_pool(f"p{pool}", cidrs, mask, mask6, excluded=content.spans(pool))
        answer = self.call(self.stage.replicas[replica].pools.create(planned))
        before = self.look()
        if isinstance(answer, FimbriaError):
            assert answer.reason == "POOL_EXISTS"
            assert planned.name in before.masks
        else:
            assert answer.same_as(planned)
            self.seen.agrees(answer, self.now, HOLD_NS)

    @rule(pool=SOME, content=CONTENTS, late=RARELY, replica=REPLICAS)
    def update_pool(self, pool: int, content: Content, late: bool, replica: int) -> None:
        name = self.pool(pool)
        pool = int(name[1:])
        cidrs = content.cidrs(pool)
        if not cidrs:
            return
        wanted = PoolContent(cidrs, content.spans(pool))
        answer = self.call(
            self.stage.replicas[replica].pools.update(name, wanted, expected_revision=10_000 if late else 0)
        )
        before = self.look()
        if not isinstance(answer, FimbriaError):
            assert (answer.cidrs, not late) == (cidrs, True)
            self.seen.agrees(answer, self.now, HOLD_NS)
        elif answer.reason == "MASK_SIZE_INVALID":
            assert any(not before.masks[name][4 if one.version == 4 else 6] for one in cidrs)
        else:
            assert {"POOL_NOT_FOUND": name not in before.masks, "POOL_CHANGED": late}[answer.reason]

    @rule(pool=SOME, replica=REPLICAS, really=RARELY)
    def delete_pool(self, pool: int, replica: int, really: bool) -> None:
        name = self.pool(pool)
        if not really and name not in {row.pool for rows in self.seen.cidrs.values() for row in rows}:
            return
        answer = self.call(self.stage.replicas[replica].pools.delete(name))
        before = self.look()
        used = any(row.pool == name for rows in before.cidrs.values() for row in rows)
        assert (isinstance(answer, FimbriaError) and answer.reason == "POOL_IN_USE") is used

    @rule(node=NUMBERS, pool=SOME, replica=REPLICAS)
    def register(self, node: int, pool: int, replica: int) -> None:
        name = f"n{node}"
        # Mostly what its loader says at every start.
        of_pool = self.seen.nodes.get(name, "") if pool >= 0 else ""
        of_pool = of_pool or self.pool(pool)
        answer = self.call(self.stage.replicas[replica].node(node, of_pool))
        before = self.look(node=name)
        if isinstance(answer, FimbriaError):
            known = before.nodes.get(name)
            family: Family = 4 if answer.metadata.get("family") == "IPv4" else 6
            assert {
                "NODE_POOL_CONFLICT": known not in (None, of_pool),
                "POOL_NOT_FOUND": of_pool not in before.masks,
                "POOL_EXHAUSTED": known is None and not before.carveable(of_pool, family, router=True),
            }[answer.reason]
            return
        assert answer == self.seen.told[name]
        if name not in before.nodes:
            in_service = {cidr.version for cidr in before.in_service[of_pool]}
            assert [cidr.network.version for cidr in answer.cidrs] == sorted(in_service)
            assert not {cidr.network[1] for cidr in answer.cidrs} & before.excluded[of_pool]
            return
        for (of_node, version), first in before.firsts().items():
            if of_node != name:
                continue
            row = next(row for row in before.cidrs[name] if row.network == first)
            empty = not any(one in first for one in (*before.held, *before.holds))
            now = self.seen.firsts().get((name, version))
            if now != first:
                assert row.draining
                assert empty
            elif row.draining and empty:
                assert not any(
                    other.pool == of_pool and other.network.version == version and not other.draining
                    for other in before.cidrs[name]
                )
                assert not before.carveable(of_pool, 4 if version == 4 else 6, router=True)

    @rule(node=SOME, force=RARELY, really=RARELY, replica=REPLICAS)
    def delete_node(self, node: int, force: bool, really: bool, replica: int) -> None:
        name = self.node(node)
        if not really and not any(key[0] == name for key in self.held):
            return
        nodes = self.stage.replicas[replica].nodes
        answer = self.call(nodes.delete(name, force=force, trace=""))
        held = [key for key in self.held if key[0] == name]
        if isinstance(answer, FimbriaError):
            assert (answer.reason, answer.metadata["addresses"]) == (
                "NODE_IN_USE",
                str(sum(len(self.held[key].held) for key in held)),
            )
            assert held and not force
        else:
            assert force or not held
            for key in held:
                del self.held[key]
        self.look(node=name)

    @rule(
        node=SOME,
        owners=st.lists(OWNERS, min_size=1, max_size=4, unique=True),
        pool=st.none() | SOME,
        replica=REPLICAS,
    )
    def allocate(self, node: int, owners: list[str], pool: int | None, replica: int) -> None:
        name, asked = self.node(node), "" if pool is None else self.pool(pool)
        store = self.stage.replicas[replica].addresses

        async def all_at_once() -> list[Allocation | FimbriaError]:
            calls = (attempt(store.allocate(name, owner, pool=asked)) for owner in owners)
            return list(await asyncio.gather(*calls))

        answers = self.stage.run(all_at_once())
        known = dict(self.held)
        for owner, answer in zip(owners, answers, strict=True):
            if not isinstance(answer, FimbriaError):
                self.held[name, owner] = answer
        before = self.look()
        for owner, answer in zip(owners, answers, strict=True):
            if isinstance(answer, FimbriaError):
                self.refused(answer, before, name, asked)
                assert answer.reason == "NODE_NOT_FOUND" or (name, owner) not in known
            elif (name, owner) in known:
                assert answer == known[name, owner]
            else:
                self.given(answer, before, asked)

    @rule(
        node=SOME,
        owners=st.lists(OWNERS, min_size=4, max_size=9, unique=True),
        pool=st.none() | SOME,
        replica=REPLICAS,
    )
    def allocate_batch(self, node: int, owners: list[str], pool: int | None, replica: int) -> None:
        name, asked = self.node(node), "" if pool is None else self.pool(pool)
        addresses = self.stage.replicas[replica].addresses
        answer = self.call(addresses.allocate_batch(name, owners, pool=asked))
        known = dict(self.held)
        if not isinstance(answer, FimbriaError):
            self.held.update(((name, owner), one) for owner, one in zip(owners, answer, strict=True))
        before = self.look()
        if isinstance(answer, FimbriaError):
            new = [owner for owner in owners if (name, owner) not in known]
            self.refused(answer, before, name, asked, count=len(new))
            return
        for one in answer:
            if (name, one.owner) in known:
                assert one == known[name, one.owner]
            else:
                self.given(one, before, asked)

    @rule(
        node=SOME,
        owner=OWNERS,
        at=st.integers(0, 5),
        slot=st.integers(0, 7),
        elsewhere=RARELY,
        replica=REPLICAS,
    )
    def allocate_wanted(
        self, node: int, owner: str, at: int, slot: int, elsewhere: bool, replica: int
    ) -> None:
        name = self.node(node)
        rows = self.seen.cidrs.get("n0" if elsewhere else name)
        if not rows:
            return
        wish = rows[at % len(rows)].network[slot]
        wanted = AddressPair(wish) if isinstance(wish, IPv4Address) else AddressPair(ipv6=wish)
        known = self.held.get((name, owner))
        answer = self.call(self.stage.replicas[replica].addresses.allocate(name, owner, wanted))
        if not isinstance(answer, FimbriaError):
            self.held[name, owner] = answer
        before = self.look()
        if name not in before.nodes:
            assert isinstance(answer, FimbriaError) and answer.reason == "NODE_NOT_FOUND"
            return
        family: Family = 4 if wish.version == 4 else 6
        if known is not None:
            has = wish in [held.address for held in known.held]
            assert answer == known if has else self.reason(answer) == "OWNER_HOLDS_ANOTHER"
            return
        grantable = any(
            wish in row.slots() - before.excluded[row.pool]
            and not row.draining
            and family in before.families(name, row.pool)
            for row in before.cidrs[name]
        )
        free = wish not in before.held and wish not in before.on_hold(self.now, HOLD_NS)
        if not isinstance(answer, FimbriaError):
            assert grantable
            assert free
            assert wish in [held.address for held in answer.held]
            self.given(answer, before, None)
        elif answer.reason in ("POOL_EXHAUSTED", "ADDRESSES_ON_HOLD"):
            assert answer.metadata["family"] != f"IPv{family}"
            self.refused(answer, before, name, answer.metadata["pool"])
        else:
            assert not (grantable and free), answer
            assert {
                "ADDRESS_IN_USE": wish in before.held,
                "ADDRESS_ON_HOLD": wish in before.on_hold(self.now, HOLD_NS),
                "ADDRESS_NOT_ON_NODE": not grantable,
                "ADDRESS_EXCLUDED": not grantable,
                "ADDRESS_DRAINING": not grantable,
                "POOL_FAMILY_MISMATCH": not grantable,
            }[answer.reason]

    @rule(node=SOME, owner=OWNERS, which=st.sampled_from(["any", "that", "another"]), replica=REPLICAS)
    def release(self, node: int, owner: str, which: str, replica: int) -> None:
        self.release_one((self.node(node), owner), which, replica)
        self.look()

    @rule(at=st.integers(0, 30), count=st.integers(1, 9), replica=REPLICAS)
    def release_some(self, at: int, count: int, replica: int) -> None:
        keys = sorted(self.held)
        start = at % max(len(keys), 1)
        for key in keys[start : start + count]:
            self.release_one(key, "that", replica)
        self.look()

    def release_one(self, key: tuple[str, str], which: str, replica: int) -> None:
        held = self.held.get(key)
        created_ns = None
        if which != "any":
            created_ns = (held.created_ns if held else 1) + (which == "another")
        answer = self.call(self.stage.replicas[replica].addresses.release(*key, created_ns))
        if held is not None and which == "another":
            assert self.reason(answer) == "ALLOCATION_CHANGED"
        elif held is None:
            assert answer == AddressPair()
        else:
            assert answer == pair(held)
            del self.held[key]
            for one in held.held:
                self.released[one.address] = self.now

    @rule(seconds=st.sampled_from([1, 20, 31]))
    def time_passes(self, seconds: int) -> None:
        self.stage.clocks.move(seconds)

    @rule(seconds=st.sampled_from([-3600, -15, 15, 3600]))
    def the_wall_clock_is_set(self, seconds: int) -> None:
        self.stage.clocks.jump(seconds)

    @rule(replica=REPLICAS)
    def sweep(self, replica: int) -> None:
        self.stage.run(self.stage.replicas[replica].addresses.sweep())
        self.look()
        assert all(
            self.now - HOLD_NS < released_ns <= self.now for released_ns, _ in self.seen.holds.values()
        )

    @rule(seconds=st.sampled_from([0, 31, 61]), swept=st.booleans(), replica=REPLICAS)
    def give_back_after(self, seconds: int, swept: bool, replica: int) -> None:
        """Two turns with time between, what is no longer on hold swept before each or not."""
        for _ in range(2):
            self.stage.clocks.move(seconds)
            if swept:
                self.sweep(replica)
            self.give_back(replica)

    @rule(replica=REPLICAS)
    def give_back(self, replica: int) -> None:
        given = self.stage.run(self.stage.replicas[replica].give_back.turn())
        before = self.look()
        firsts = set(before.firsts().values())
        seconds = self.stage.clocks.monotonic
        for rows in before.cidrs.values():
            for row in rows:
                empty = not any(one in row.network for one in (*before.held, *before.holds))
                if str(row.network) not in given:
                    assert not (row.draining and empty and row.network not in firsts)
                    continue
                assert empty
                assert row.network not in firsts
                assert row.draining or seconds - self.used[row.network] >= IDLE_SECONDS

    def look(self, *, node: str = "") -> Picture:
        """Checks all that must be true now; returns how it was before.

        `node` is the one whose first CIDRs may have changed.
        """
        before, self.seen = self.seen, self.stage.picture()
        seen = self.seen
        seen.check()
        assert {address: row[:2] for address, row in seen.held.items()} == {
            one.address: key for key, allocation in self.held.items() for one in allocation.held
        }, "what was acknowledged is what is held"
        for key, first in before.firsts().items():
            assert key[0] == node or seen.firsts().get(key) == first, "the router address stays"
        self._look_at_holds()
        rows = [row.network for of_node in seen.cidrs.values() for row in of_node]
        known = [row.network for of_node in before.cidrs.values() for row in of_node]
        for network in rows:
            if network not in known or any(one in network for one in (*seen.held, *seen.holds)):
                self.used[network] = self.stage.clocks.monotonic
        for number, name in enumerate(sorted(seen.masks)):
            pool = self.stage.run(self.stage.replicas[number % 2].pools.get(name))
            seen.agrees(pool, self.now, HOLD_NS)
        return before

    def _look_at_holds(self) -> None:
        """A release is on hold until the clock says that it is over, or its CIDR is gone."""
        networks = [row.network for rows in self.seen.cidrs.values() for row in rows]
        for address, released_ns in list(self.released.items()):
            row = self.seen.holds.get(address)
            if released_ns <= self.now - HOLD_NS:
                del self.released[address]
            elif row is None:
                assert not any(address in network for network in networks), address
                del self.released[address]
            else:
                # A sweep under a clock that was set back moves it to the present, nothing else.
                assert row[0] <= released_ns
                self.released[address] = row[0]

    def given(self, answer: Allocation, before: Picture, asked: str | None) -> None:
        """A new allocation is of what was free, of the right pool and families."""
        pool = answer.pool if asked is None else asked or before.nodes[answer.node]
        assert answer.pool == pool
        assert [held.address.version for held in answer.held] == before.families(answer.node, pool)
        for held in answer.held:
            assert held.address not in before.held
            assert held.address not in before.on_hold(self.now, HOLD_NS)
            (row,) = [row for row in self.seen.cidrs[answer.node] if held.address in row.network]
            assert (row.network, row.pool, row.draining) == (held.cidr, pool, False)
            assert held.address in row.slots() - before.excluded[pool]
            assert held.router == self.seen.firsts()[answer.node, held.address.version][1]

    def refused(self, answer: FimbriaError, before: Picture, node: str, asked: str, count: int = 1) -> None:
        """A refusal is for the reason that it says, as of the tables afterwards."""
        if answer.reason == "NODE_NOT_FOUND":
            assert node not in before.nodes
            return
        pool = asked or before.nodes[node]
        if answer.reason == "POOL_NOT_FOUND":
            assert pool not in before.masks
            return
        if answer.reason == "POOL_FAMILY_MISMATCH":
            assert not before.families(node, pool)
            return
        family: Family = 4 if answer.metadata["family"] == "IPv4" else 6
        free, on_hold = self.seen.free(node, pool, family), self.seen.on_hold(self.now, HOLD_NS)
        further = self.seen.carveable(pool, family, router=False)
        room = sum(
            len(set(network) - self.seen.excluded[pool]) - (3 if family == 4 else 2) for network in further
        )
        assert len(free - on_hold) + room < count
        assert (answer.reason == "ADDRESSES_ON_HOLD") == (len(free) + room >= count)
        assert answer.reason in ("ADDRESSES_ON_HOLD", "POOL_EXHAUSTED")

    @staticmethod
    def reason(answer: object) -> str:
        return answer.reason if isinstance(answer, FimbriaError) else f"no refusal: {answer}"


def _one_of(names: list[str], some: int) -> str | None:
    return names[some % len(names)] if names and some >= 0 else None
