"""What belongs to nobody: found by comparing what there is with the records, and removed if that is wanted.

What is being made has a record already, and what is being removed still has one or a release to be made, so
the finder may be asked at any time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

from services.chassis.errors import FimbriaError, Unavailable
from services.chassis.logs import get_logger
from services.loader.endpoints.endpoint import Phase
from services.loader.endpoints.manager import EndpointManager
from services.loader.endpoints.publication import Publication
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.endpoints.releases import Releases
from services.loader.interfaces import AddressClient, Datapath, DatapathError, IdentityClient, NodeLinks
from services.loader.policy.subjects import SubjectTable

# What endpoints' owners look like: a container's id and an interface. Addresses of others are theirs.
_OWNER: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,199}/[^\s/:]{1,15}")

_log = get_logger(__name__)


class Kind(StrEnum):
    """What an orphan is."""

    DEVICE = "device"
    ROW = "endpoint-row"
    SUBJECT = "subject"
    ENTRIES = "policy-entries"
    PIN = "pin"
    LINK = "link"
    MAP = "map"
    ROUTE = "route"
    ADDRESS = "address"
    PUBLICATION = "ipcache-entry"


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something that belongs to nobody; ``remove`` raises FimbriaError, DatapathError or OSError."""

    kind: Kind
    name: str
    detail: str
    remove: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Found:
    """What became of an orphan: neither removed nor an error where it was only to be told of."""

    orphan: Orphan
    removed: bool = False
    error: str = ""


class OrphanFinder:
    """Looks at the node's kernel and devices, and at what the services hold for the node."""

    def __init__(
        self,
        *,
        registry: EndpointRegistry,
        subjects: SubjectTable,
        kernel: Datapath,
        links: NodeLinks,
        manager: EndpointManager,
        releases: Releases,
        publication: Publication,
        addresses: AddressClient,
        identities: IdentityClient,
        damaged: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._subjects = subjects
        self._kernel = kernel
        self._links = links
        self._manager = manager
        self._releases = releases
        self._publication = publication
        self._addresses = addresses
        self._identities = identities
        self._damaged = damaged

    async def collect(self, *, remove: bool) -> tuple[list[Found], str]:
        """Finds everything, and removes it if asked to; the text says what was not looked for, and why.

        Raises DatapathError.
        """
        skipped: list[str] = []
        found = await self._pins()
        if self._damaged():
            # It may belong to a pod that runs and whose record nobody can read.
            skipped.append("a record cannot be read: only pins were looked at")
        else:
            found = await self.local() + found
            for what, look in (("addresses", self._held), ("ipcache entries", self._published)):
                try:
                    found += await look()
                except Unavailable as problem:
                    skipped.append(f"{what} were not looked at: {problem.message}")
        if not remove:
            return [Found(orphan) for orphan in found], "; ".join(skipped)
        return await remove_all(found), "; ".join(skipped)

    async def local(self) -> list[Orphan]:
        """Devices, rows, policies and routes. Raises FimbriaError, DatapathError."""
        devices = await self._links.endpoint_links()
        routes = await self._links.list_endpoint_routes()
        known = {endpoint.record.spec.host_device for endpoint in self._registry}
        found = [
            Orphan(
                Kind.DEVICE,
                device,
                f"interface {ifindex}, of no endpoint",
                partial(self._links.delete_endpoint_link, device),
            )
            for device, ifindex in sorted(devices.items())
            if device not in known
        ]
        found += self._rows()
        rows, entries = self._subjects.strays()
        found += [
            Orphan(
                Kind.SUBJECT,
                str(number),
                "a policy that no endpoint is under",
                _later(self._subjects.remove_stray_subject, number),
            )
            for number in rows
        ]
        found += [
            Orphan(
                Kind.ENTRIES,
                str(instance),
                f"{len(keys)} entries of an instance that is not in force",
                _later(self._subjects.remove_stray_entries, instance, keys),
            )
            for instance, keys in entries.items()
        ]
        wanted = {
            (record.ifindex, address)
            for endpoint in self._registry
            if (record := endpoint.record).phase is Phase.READY
            for address in record.addresses
        }
        unsettled = {
            devices.get(endpoint.record.spec.host_device)
            for endpoint in self._registry
            if endpoint.record.phase is not Phase.READY
        }
        found += [
            Orphan(
                Kind.ROUTE,
                address,
                f"to interface {ifindex}",
                partial(self._links.delete_endpoint_route, ifindex, address),
            )
            for ifindex, address in routes
            if (ifindex, address) not in wanted and ifindex not in unsettled
        ]
        return found

    def _rows(self) -> list[Orphan]:
        found = []
        for row in self._kernel.attached():
            endpoint = self._registry.find(row.endpoint_id)
            if endpoint is not None and (
                endpoint.record.phase is not Phase.READY or endpoint.record.ifindex == row.ifindex
            ):
                continue
            ipv6 = row.ipv6
            found.append(
                Orphan(
                    Kind.ROW,
                    str(row.endpoint_id),
                    f"interface {row.ifindex}, {' and '.join(row.addresses) or 'no address'}",
                    _later(self._kernel.detach, row.ifindex, row.ipv4, ipv6),
                )
            )
        return found

    async def _pins(self) -> list[Orphan]:
        devices = {endpoint.record.spec.host_device for endpoint in self._registry}
        strays = await asyncio.to_thread(self._kernel.stray_pins, devices)
        return [
            Orphan(Kind(stray.kind), stray.path, stray.detail, _later(self._kernel.remove_stray_pin, stray))
            for stray in strays
        ]

    async def _held(self) -> list[Orphan]:
        held = await self._addresses.held()
        return [
            Orphan(
                Kind.ADDRESS,
                " and ".join(addresses),
                f"held by {owner}, which is not here",
                partial(self._release, owner),
            )
            for owner, addresses in held.items()
            if _OWNER.fullmatch(owner)
            and self._registry.by_owner(owner) is None
            and owner not in self._releases
        ]

    async def _release(self, owner: str) -> None:
        # As a DEL would: nothing that an ADD has begun meanwhile is taken from it.
        if self._registry.by_owner(owner) is None:
            await self._manager.remove(owner)
            if owner in self._releases:
                raise Unavailable("its release is noted, and made later", reason="RELEASE_POSTPONED")

    async def _published(self) -> list[Orphan]:
        published = await self._identities.published_here()
        known = self._publication.prefixes() | self._releases.prefixes()
        return [
            Orphan(
                Kind.PUBLICATION,
                prefix,
                f"published for {owner or 'nobody'}, which has no endpoint here",
                partial(self._publication.withdraw_unless_known, prefix),
            )
            for prefix, owner in published.items()
            if prefix not in known
        ]


async def remove_all(orphans: list[Orphan]) -> list[Found]:
    """Removes them one after the other; what cannot be removed says why."""
    done = []
    for orphan in orphans:
        try:
            await orphan.remove()
        except (FimbriaError, DatapathError, OSError) as problem:
            _log.error("orphan.left", kind=orphan.kind.value, name=orphan.name, error=str(problem))
            done.append(Found(orphan, error=str(problem)))
        else:
            _log.info("orphan.removed", kind=orphan.kind.value, name=orphan.name, detail=orphan.detail)
            done.append(Found(orphan, removed=True))
    return done


def _later(call: Callable[..., object], *arguments: object) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        call(*arguments)

    return run
