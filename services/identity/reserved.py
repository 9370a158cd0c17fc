"""The identities that exist before any pod: their numbers and names are Cilium's, and fixed for good.

The BPF code, the policy language (entities) and every tool that reads flows rely on these numbers.
"""

from __future__ import annotations

from types import MappingProxyType

from services.chassis.labels import SOURCE_RESERVED, LabelSet, prefix_labels

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
        9: "world-ipv4",
        10: "world-ipv6",
    }
)
RESERVED_NUMBERS = MappingProxyType({name: number for number, name in RESERVED_IDENTITIES.items()})

# 11..255 stay free for reserved identities to come. The top is 16 bits wide as in Cilium: a cluster id
# takes the bits above, and both fit the 24 bits of a VNI.
CLUSTER_FIRST = 256
CLUSTER_LAST = 65535

# Those of prefixes outside the cluster: the last cluster id is given up for them.
PREFIX_FIRST = 0xFF0000
PREFIX_LAST = 0xFFFFFF

# The prefixes that hold a whole family have reserved identities.
RESERVED_PREFIXES = MappingProxyType({"0.0.0.0/0": 9, "::/0": 10})
_PREFIX_OF = {number: prefix for prefix, number in RESERVED_PREFIXES.items()}


def reserved_labels(number: int) -> LabelSet:
    """The labels of a reserved identity: "reserved:host", or those of the prefix that it stands for."""
    prefix = _PREFIX_OF.get(number)
    if prefix is not None:
        return prefix_labels(prefix)
    return LabelSet((f"{SOURCE_RESERVED}:{RESERVED_IDENTITIES[number]}",))


def is_reserved(number: int) -> bool:
    """Whether `number` is a reserved identity that somebody can have."""
    return number != UNKNOWN and number in RESERVED_IDENTITIES
