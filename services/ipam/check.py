"""Where what owners hold on a node differs from what its endpoints use: pure, nothing is read or changed.

Addresses are packed (4 or 16 bytes, network order), as the database keeps them: a node may have tens of
thousands of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """What is wrong; numbered and named as in the API, in the order in which findings are listed."""

    LEAKED = 1
    NOT_HELD = 2
    HELD_BY_ANOTHER = 3
    USED_TWICE = 4


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """An address in use as the service has it; `created_ns` is Unix time in nanoseconds."""

    address: bytes
    node: str
    owner: str
    created_ns: int


@dataclass(frozen=True, slots=True)
class UsedBy:
    """An endpoint of the node: the owner of its addresses, and those that it has already."""

    owner: str
    addresses: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. `holder` is None for what nobody holds; `users` are owners of endpoints of the node."""

    kind: Kind
    address: bytes
    holder: HeldAddress | None
    users: tuple[str, ...] = ()


def users_of(endpoints: Iterable[UsedBy]) -> dict[bytes, list[str]]:
    """Who uses each address, in the order of the endpoints."""
    users: dict[bytes, list[str]] = {}
    for endpoint in endpoints:
        for address in dict.fromkeys(endpoint.addresses):
            users.setdefault(address, []).append(endpoint.owner)
    return users


def compare(
    node: str,
    held: Mapping[bytes, HeldAddress],
    endpoints: Sequence[UsedBy],
    *,
    now_ns: int,
    min_age_ns: int,
) -> list[Finding]:
    """The differences on `node`, leaks first, by address, IPv4 before IPv6.

    `held` has everything that is held on the node and, of other nodes, at least what the endpoints use. An
    allocation younger than `min_age_ns` is not called leaked, nor is one of which an endpoint uses an
    address: releasing that would take the address from under the endpoint.
    """
    users = users_of(endpoints)
    present = {endpoint.owner for endpoint in endpoints}
    found: list[Finding] = []
    contested: set[str] = set()
    for address, using in users.items():
        holder = held.get(address)
        if holder is None:
            found.append(Finding(Kind.NOT_HELD, address, None, tuple(using)))
        elif holder.node != node or holder.owner not in using:
            found.append(Finding(Kind.HELD_BY_ANOTHER, address, holder, tuple(using)))
            if holder.node == node:
                contested.add(holder.owner)
        if len(using) > 1:
            found.append(Finding(Kind.USED_TWICE, address, holder, tuple(using)))
    found += [
        Finding(Kind.LEAKED, one.address, one)
        for one in held.values()
        if one.node == node
        and one.owner not in present
        and one.owner not in contested
        and one.created_ns <= now_ns - min_age_ns
    ]
    return sorted(found, key=lambda finding: (finding.kind, len(finding.address), finding.address))
