"""The node's endpoints in memory, in step with their records on disk, and whoever watches them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from services.chassis.errors import NotFound, ResourceExhausted
from services.chassis.logs import get_logger
from services.loader.endpoints.endpoint import (
    MAX_ENDPOINT_ID,
    Endpoint,
    EndpointRecord,
    EndpointStatus,
    Phase,
    State,
)
from services.loader.endpoints.history import Histories
from services.loader.endpoints.records import StateDirectory

_STATES = {
    Phase.CREATING: State.CREATING,
    Phase.READY: State.READY,
    Phase.DELETING: State.DELETING,
}
_WATCH_BACKLOG = 4096

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EndpointChange:
    """A change of one endpoint; ``endpoint`` is None when it is gone."""

    id: int
    endpoint: Endpoint | None


class EndpointRegistry:
    """All endpoints of the node. A record is stored before it is here."""

    def __init__(self, state: StateDirectory, node: str = "") -> None:
        self._state = state
        self.histories = Histories(node)
        self._by_id: dict[int, Endpoint] = {}
        self._by_owner: dict[str, int] = {}
        self._by_address: dict[str, int] = {}
        # A number that has just become free may still be named by flows and connections.
        self._ids = state.numbers("endpoint-ids", ahead=8)
        self._watchers: set[asyncio.Queue[EndpointChange]] = set()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Endpoint]:
        # Read at once: a thread that measures may be here while the loop changes it.
        return iter([endpoint for _, endpoint in sorted(self._by_id.items())])

    def find(self, number: int) -> Endpoint | None:
        """The endpoint of a number, if there is one."""
        return self._by_id.get(number)

    def get(self, number: int) -> Endpoint:
        """The endpoint of a number. Raises NotFound (ENDPOINT_NOT_FOUND)."""
        endpoint = self._by_id.get(number)
        if endpoint is None:
            raise NotFound(
                f"there is no endpoint {number} on this node",
                reason="ENDPOINT_NOT_FOUND",
                metadata={"endpoint": str(number)},
            )
        return endpoint

    def by_owner(self, owner: str) -> Endpoint | None:
        """The endpoint of ``<container id>/<interface>``, if there is one."""
        number = self._by_owner.get(owner)
        return None if number is None else self._by_id[number]

    def by_address(self, address: str) -> Endpoint | None:
        """The endpoint that has an address of either family, if there is one."""
        number = self._by_address.get(address)
        return None if number is None else self._by_id[number]

    by_ipv4 = by_address

    def identity_of(self, labels: tuple[str, ...]) -> tuple[int, int] | None:
        """The identity, and its revision, of the endpoints that are ready and have just these labels."""
        for endpoint in self._by_id.values():
            record = endpoint.record
            if record.phase is Phase.READY and record.spec.labels == labels and record.identity:
                return record.identity, record.identity_revision
        return None

    def new_id(self) -> int:
        """A number that no endpoint has, and that was not in use lately. Raises ResourceExhausted
        (ENDPOINTS_EXHAUSTED).
        """
        for _ in range(MAX_ENDPOINT_ID):
            number = (self._ids.take() - 1) % MAX_ENDPOINT_ID + 1
            if number not in self._by_id:
                return number
        raise ResourceExhausted(
            f"the node has {MAX_ENDPOINT_ID} endpoints, the most there can be", reason="ENDPOINTS_EXHAUSTED"
        )

    def save(self, record: EndpointRecord) -> None:
        """Stores a record. Its state follows the record's phase when that changes. Raises OSError."""
        self._state.save_endpoint(record)
        self.take_up(record)

    def sync_soon(self, number: int) -> None:
        """Sees to it that an endpoint's record is on disk in a moment, without anybody waiting for that.

        A machine that crashes before has no endpoint either, and its address goes with the runtime's DEL.
        """
        asyncio.get_running_loop().run_in_executor(None, self._sync, number)

    def _sync(self, number: int) -> None:
        try:
            self._state.sync_endpoint(number)
        except OSError as problem:
            _log.error("endpoint.record_not_synced", endpoint=number, error=str(problem))

    def take_up(self, record: EndpointRecord) -> None:
        """Takes up a record that is on disk already."""
        before = self._by_id.get(record.id)
        if before is not None and before.record.phase is record.phase:
            endpoint = replace(before, record=record)
        else:
            endpoint = Endpoint(record, EndpointStatus(_STATES[record.phase]))
        if before is not None:
            self._forget_addresses(before.record)
        self._by_owner[record.spec.owner] = record.id
        self._by_address |= dict.fromkeys(record.addresses, record.id)
        self._put(endpoint)

    def set_status(self, number: int, **status: Any) -> None:
        """Changes fields of an endpoint's status; an endpoint that is gone has none."""
        endpoint = self._by_id.get(number)
        if endpoint is not None:
            changed = endpoint.having(**status)
            if changed != endpoint:
                self._put(changed)

    def remove(self, number: int) -> None:
        """Forgets an endpoint, on disk too."""
        self._state.delete_endpoint(number)
        endpoint = self._by_id.pop(number, None)
        if endpoint is None:
            return
        self._by_owner.pop(endpoint.record.spec.owner, None)
        self._forget_addresses(endpoint.record)
        self.histories.forget(number)
        self._tell(EndpointChange(number, None))

    async def watch(self) -> AsyncGenerator[EndpointChange | None, None]:
        """All endpoints, then None, then changes. Ends when the reader falls too far behind."""
        queue: asyncio.Queue[EndpointChange] = asyncio.Queue(_WATCH_BACKLOG)
        self._watchers.add(queue)
        try:
            for endpoint in self:
                yield EndpointChange(endpoint.record.id, endpoint)
            yield None
            while queue in self._watchers or not queue.empty():
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    def _forget_addresses(self, record: EndpointRecord) -> None:
        for address in record.addresses:
            if self._by_address.get(address) == record.id:
                del self._by_address[address]

    def _put(self, endpoint: Endpoint) -> None:
        self._by_id[endpoint.record.id] = endpoint
        self._tell(EndpointChange(endpoint.record.id, endpoint))

    def _tell(self, change: EndpointChange) -> None:
        for queue in list(self._watchers):
            if queue.full():
                self._watchers.discard(queue)
            else:
                queue.put_nowait(change)
