"""What must hold when a storm is over: everything acknowledged is there, and nothing is there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.channel import open_channel
from tests.faults.checker import (
    Model,
    Violation,
    check_held_back,
    check_kept,
    check_keys,
    check_single_owners,
    holding,
    published,
)
from tests.faults.clients import PASSING, Load, paged
from tests.faults.history import History, Operation
from tests.faults.storm import KEPT_SECONDS


async def check_everything(load: Load, *, hold_seconds: float = 0.0) -> dict[str, int]:
    """Reads all tables of the services that the load has been using, and holds them against its histories.

    The load has stopped and every replica serves. Raises Violation; returns what was counted, to be shown.
    """
    async with open_channel(load.ipam) as ipam:
        addresses: Any = ipam_pb2_grpc.AddressServiceStub(ipam)
        held = await paged(addresses.ListAddresses, ipam_pb2.ListAddressesRequest(), "addresses")
    _unique("addresses", [each.address for each in held])
    _unique("owners", [f"{each.node}/{each.owner}" for each in held])
    _explained(load.addresses, {f"{each.node}/{each.owner}": each.address for each in held}, holding)
    check_single_owners(load.addresses.operations)
    if hold_seconds:
        check_held_back(load.addresses.operations, hold_seconds)
    return {"addresses": len(held), **await check_entries(load)}


async def check_entries(load: Load) -> dict[str, int]:
    """The same for what the identity service keeps."""
    if load.problems:
        raise Violation(f"{len(load.problems)} calls failed as none should: {load.problems[:3]}")
    async with open_channel(load.identity) as identity:
        identities: Any = identity_pb2_grpc.IdentityServiceStub(identity)
        ipcache: Any = identity_pb2_grpc.IpCacheServiceStub(identity)
        known = await paged(identities.ListIdentities, identity_pb2.ListIdentitiesRequest(), "identities")
        entries = await paged(ipcache.ListIpCacheEntries, identity_pb2.ListIpCacheEntriesRequest(), "entries")
    _unique("numbers", [each.id for each in known])
    _unique("label sets", [tuple(each.labels) for each in known])
    _unique("prefixes", [each.prefix for each in entries])
    used = [each for each in known if not each.labels[0].startswith(PASSING)]
    _explained(load.numbers, {each.labels[0]: str(each.id) for each in used}, holding)
    check_single_owners(load.numbers.operations)
    check_single_owners([*load.numbers.operations, *_certain(load.passing)])
    changed = check_kept(load.passing.operations, KEPT_SECONDS)
    _explained(load.entries, {each.prefix: f"{each.node} {each.identity}" for each in entries}, published)
    return {
        "acknowledged": load.acknowledged,
        "unknown": sum(each.unknown for each in load.histories),
        "refused": sum(each.refused for each in load.histories),
        "identities": len(known),
        "collected": changed,
        "entries": len(entries),
    }


def _certain(history: History) -> list[Operation]:
    """Takes of what nobody uses afterwards: theirs when they were answered, and no longer for certain."""
    takes = [each for each in history.operations if each.kind == "take" and each.known]
    ends = [Operation("free", each.key, invoked=each.returned, returned=each.returned) for each in takes]
    return [*takes, *ends]


def _explained(history: History, found: Mapping[str, str], model: Model) -> None:
    keys = {each.key for each in history.operations}
    if strange := found.keys() - keys:
        raise Violation(f"there is what nobody asked for: {sorted(strange)[:5]}")
    history.finally_read(dict(found), keys)
    check_keys(history.operations, model)


def _unique(what: str, values: list[Any]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise Violation(f"{what} that are there twice: {twice[:5]}")
