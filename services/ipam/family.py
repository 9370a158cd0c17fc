"""The two address families: what is asked of a value of either."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

Family: TypeAlias = Literal[4, 6]
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# In the order in which a node's CIDRs and an owner's addresses are shown.
FAMILIES: Final[tuple[Family, ...]] = (4, 6)


def family_of(value: Address | Network) -> Family:
    """4 or 6."""
    return 4 if value.version == 4 else 6


def family_name(family: Family) -> str:
    """ "IPv4" or "IPv6", as errors and their metadata say it."""
    return f"IPv{family}"


def of_family(networks: Iterable[Network], family: Family) -> tuple[Network, ...]:
    """Those of `networks` that are of `family`, in their order."""
    return tuple(network for network in networks if network.version == family)


def comma_separated(networks: Iterable[Network]) -> str:
    """The networks as errors name them."""
    return ", ".join(map(str, networks))


def address_from_packed(packed: bytes) -> Address:
    """The inverse of `Address.packed`: 4 bytes are IPv4, 16 are IPv6, in network order."""
    return ipaddress.IPv4Address(packed) if len(packed) == 4 else ipaddress.IPv6Address(packed)
