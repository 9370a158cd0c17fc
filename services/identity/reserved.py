"""The identities that exist before any pod: their numbers and names are Cilium's, and fixed for good.

The BPF code, the policy language (entities) and every tool that reads flows rely on these numbers.
"""

from __future__ import annotations

from types import MappingProxyType

from services.chassis.labels import SOURCE_RESERVED

# Unknown is what the datapath says when it has no identity; it is never given to anybody.
UNKNOWN = 0

RESERVED_IDENTITIES = MappingProxyType(
    {
        UNKNOWN: "unknown",
        1: "host",
        2: "world",
        3: "unmanaged",
        4: "health",
        5: "init",
        6: "remote-node",
        7: "kube-apiserver",
        8: "ingress",
    }
)
RESERVED_NUMBERS = MappingProxyType({name: number for number, name in RESERVED_IDENTITIES.items()})

# 9..255 stay free for reserved identities to come. The top is 16 bits wide as in Cilium: a cluster id
# takes the bits above, and both fit the 24 bits of a VNI.
CLUSTER_FIRST = 256
CLUSTER_LAST = 65535


def reserved_label(number: int) -> str:
    """The one label of a reserved identity, e.g. "reserved:host"."""
    return f"{SOURCE_RESERVED}:{RESERVED_IDENTITIES[number]}"


def is_reserved(number: int) -> bool:
    """Whether `number` is a reserved identity that somebody can have."""
    return number != UNKNOWN and number in RESERVED_IDENTITIES
