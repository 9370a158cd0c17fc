"""What the cluster is told of this node's endpoints.

One message at a time: a message that names everything must neither overtake nor be overtaken by one that
adds or takes back a single endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.loader.endpoints.endpoint import EndpointRecord, Phase
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.interfaces import IdentityClient


class Publication:
    """Publishes and withdraws the node's entries of the cluster's ipcache. ``outdated`` is set while the
    cluster has to be told all.
    """

    def __init__(self, identities: IdentityClient, registry: EndpointRegistry) -> None:
        self._identities = identities
        self._registry = registry
        self._turn = asyncio.Lock()
        # Published, but not yet stored as ready: these belong to everything too.
        self._early: dict[int, EndpointRecord] = {}
        self.outdated = asyncio.Event()
        self.outdated.set()

    async def publish(self, record: EndpointRecord) -> int:
        """Tells of an endpoint; returns the revision of the ipcache feed. Raises FimbriaError."""
        async with self._turn:
            self._early[record.id] = record
            return await self._identities.publish([record])

    def stored(self, number: int) -> None:
        """The endpoint's record says now what has been published, or the endpoint has come to nothing."""
        self._early.pop(number, None)

    async def withdraw(self, prefixes: Sequence[str]) -> None:
        """Takes prefixes back. Raises FimbriaError."""
        async with self._turn:
            await self._identities.withdraw(prefixes)

    def prefixes(self) -> set[str]:
        """Prefixes of endpoints that are here or are being made."""
        ready = [each.record for each in self._registry if each.record.phase is Phase.READY]
        return {prefix for record in (*ready, *self._early.values()) for prefix in record.prefixes}

    async def withdraw_unless_known(self, prefix: str) -> None:
        """Takes a prefix back if no endpoint has it by then. Raises FimbriaError."""
        async with self._turn:
            if prefix not in self.prefixes():
                await self._identities.withdraw([prefix])

    async def publish_all(self) -> tuple[list[EndpointRecord], int]:
        """Tells of everything there is and of nothing else; returns that, and the revision. Raises
        FimbriaError.
        """
        async with self._turn:
            self.outdated.clear()
            ready = [each.record for each in self._registry if each.record.phase is Phase.READY]
            records = {record.id: record for record in ready} | self._early
            try:
                return list(records.values()), await self._identities.publish(
                    list(records.values()), replace=True
                )
            except BaseException:
                self.outdated.set()
                raise
