"""Who holds which address: the store behind the address service."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

from opentelemetry.trace import Span

from services.chassis.db import Database, Group
from services.chassis.feed import Feed
from services.ipam import holds
from services.ipam.address_list import read_holds, read_page
from services.ipam.address_release import GivenBack, Holding, Released, Releaser
from services.ipam.address_take import ANY, Allocator, Asked
from services.ipam.family import Address
from services.ipam.holds import HeldBack
from services.ipam.model import AddressPair, Allocation, Mode, Workload


class AddressStore:
    """Who holds which address.

    `clock` returns Unix time in nanoseconds; `hold_seconds` is how long nobody gets an address after its
    release. `feed` is the node feed: a node that runs out gets another CIDR.
    """

    def __init__(
        self,
        database: Database,
        feed: Feed,
        clock: Callable[[], int],
        *,
        mode: Mode = "cluster-pool",
        hold_seconds: float = 0.0,
    ) -> None:
        self._database = database
        self._clock = clock
        self._mode = mode
        self._hold_ns = round(hold_seconds * 1e9)
        allocator = Allocator(feed, clock, mode, self._hold_ns)
        releaser = Releaser(clock, self._hold_ns, allocator.full)
        self._allocations: Group[Asked, tuple[Allocation, ...]] = Group(database, allocator.together)
        self._releases: Group[GivenBack, Released] = Group(database, releaser.together)

    @property
    def workloads_matter(self) -> bool:
        """Whether a workload's attributes choose its pool."""
        return self._mode == "multi-pool"

    async def allocate(
        self,
        node: str,
        owner: str,
        wanted: AddressPair = ANY,
        *,
        pool: str = "",
        workload: Workload | None = None,
        trace: str | Span = "",
    ) -> Allocation:
        """What `owner` has on `node`; if it has nothing, an address of each family that node and pool have.

        All of them or none: those of `wanted`, else the next free ones in rotation. The pool is `pool` or
        what `workload` chooses (choice.py). `trace` goes with the event when the node gets another CIDR.

        Raises NotFound (NODE_NOT_FOUND, POOL_NOT_FOUND), InvalidArgument (POOL_NAME_INVALID), AlreadyExists
        (ADDRESS_IN_USE, OWNER_HOLDS_ANOTHER), FailedPrecondition (ADDRESS_NOT_ON_NODE, ADDRESS_EXCLUDED,
        ADDRESS_DRAINING, POOL_FAMILY_MISMATCH, POOL_AMBIGUOUS, POOL_NOT_ALLOWED), ResourceExhausted
        (ADDRESSES_ON_HOLD, ADDRESS_ON_HOLD, CIDR_EXHAUSTED, POOL_EXHAUSTED).
        """
        (allocation,) = await self._allocations.submit(Asked(node, (owner,), wanted, pool, workload, trace))
        return allocation

    async def allocate_batch(
        self, node: str, owners: Sequence[str], *, pool: str = "", trace: str | Span = ""
    ) -> Sequence[Allocation]:
        """The same for each of `owners`, in their order, which are each there once: for all of them or none.

        Raises as `allocate` does, with the metadata "owner": the first that there is nothing for.
        """
        asked = Asked(node, tuple(owners), pool=pool, trace=trace, batch=True)
        return await self._allocations.submit(asked)

    async def release(self, node: str, owner: str, created_ns: int | None = None) -> AddressPair:
        """Frees what `owner` holds on `node`; returns what that was.

        With `created_ns` only the allocation that was made at that time: raises Aborted (ALLOCATION_CHANGED)
        when the owner holds another.
        """
        released = await self._releases.submit(GivenBack(node, (Holding(owner, created_ns),), strict=True))
        return _pair(released.addresses)

    async def release_batch(self, node: str, holdings: Sequence[Holding]) -> Released:
        """Frees `holdings`; an allocation that is another one by now is left alone and counted."""
        return await self._releases.submit(GivenBack(node, holdings))

    async def sweep(self) -> int:
        """Removes holds that are over and mends those that a clock set back has made too long; how many."""
        return await holds.sweep(self._database, self._clock, self._hold_ns)

    async def list(
        self,
        *,
        node: str,
        owner: str,
        address: Address | None = None,
        after: tuple[str, Address] | None,
        limit: int,
    ) -> Sequence[Allocation]:
        """Up to `limit` allocations by (node, first address) past `after`.

        Empty `node` or `owner` means any; `address`, of either family, only who holds it.
        """
        async with self._database.read() as connection:
            return await read_page(
                connection, node=node, owner=owner, address=address, after=after, limit=limit
            )

    async def list_on_hold(
        self,
        *,
        node: str,
        owner: str,
        address: Address | None = None,
        after: tuple[str, Address] | None,
        limit: int,
    ) -> Sequence[HeldBack]:
        """Up to `limit` addresses on hold by (node, address) past `after`; filters as in `list`."""
        async with self._database.read() as connection:
            return await read_holds(
                connection,
                hold_ns=self._hold_ns,
                now_ns=self._clock(),
                node=node,
                owner=owner,
                address=address,
                after=after,
                limit=limit,
            )


def _pair(found: Sequence[Address]) -> AddressPair:
    return AddressPair(
        ipv4=next((one for one in found if isinstance(one, ipaddress.IPv4Address)), None),
        ipv6=next((one for one in found if isinstance(one, ipaddress.IPv6Address)), None),
    )
