# SPDX-License-Identifier: Apache-2.0
"""ICMP types by the names that manifests use for them (IANA's registries, in CamelCase)."""

from __future__ import annotations

from services.policy.fields import Node
from services.policy.rules import Protocol

MAX_TYPE = 255

TYPES: dict[Protocol, dict[str, int]] = {
    Protocol.ICMP: {
        "EchoReply": 0,
        "DestinationUnreachable": 3,
        "Redirect": 5,
        "EchoRequest": 8,
        "Echo": 8,
        "RouterAdvertisement": 9,
        "RouterSelection": 10,
        "TimeExceeded": 11,
        "ParameterProblem": 12,
        "Timestamp": 13,
        "TimestampReply": 14,
        "Photuris": 40,
        "ExtendedEchoRequest": 42,
        "ExtendedEchoReply": 43,
    },
    Protocol.ICMPV6: {
        "DestinationUnreachable": 1,
        "PacketTooBig": 2,
        "TimeExceeded": 3,
        "ParameterProblem": 4,
        "EchoRequest": 128,
        "EchoReply": 129,
        "MulticastListenerQuery": 130,
        "MulticastListenerReport": 131,
        "MulticastListenerDone": 132,
        "RouterSolicitation": 133,
        "RouterAdvertisement": 134,
        "NeighborSolicitation": 135,
        "NeighborAdvertisement": 136,
        "RedirectMessage": 137,
        "RouterRenumbering": 138,
        "ICMPNodeInformationQuery": 139,
        "ICMPNodeInformationResponse": 140,
        "InverseNeighborDiscoverySolicitation": 141,
        "InverseNeighborDiscoveryAdvertisement": 142,
        "HomeAgentAddressDiscoveryRequest": 144,
        "HomeAgentAddressDiscoveryReply": 145,
        "MobilePrefixSolicitation": 146,
        "MobilePrefixAdvertisement": 147,
        "DuplicateAddressRequestCodeSuffix": 157,
        "DuplicateAddressConfirmationCodeSuffix": 158,
        "ExtendedEchoRequest": 160,
        "ExtendedEchoReply": 161,
    },
}
TITLES = {Protocol.ICMP: "ICMP", Protocol.ICMPV6: "ICMPv6"}
# The first name of a number is the one to show.
_NAMES = {
    protocol: {number: name for name, number in reversed(types.items())} for protocol, types in TYPES.items()
}


def type_called(protocol: Protocol, number: int) -> str | None:
    """The name of a type, if it has one."""
    return _NAMES[protocol].get(number)


def read_type(node: Node, protocol: Protocol) -> int | None:
    """A type by number, or by name or number in a string."""
    value = node.value
    if isinstance(value, str):
        if value in TYPES[protocol]:
            return TYPES[protocol][value]
        if len(value) <= 3 and value.isascii() and value.isdigit() and str(int(value)) == value:
            value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TYPE:
        return value
    known = ", ".join(TYPES[protocol])
    node.wrong(f"an {TITLES[protocol]} type: a number from 0 to {MAX_TYPE} or one of {known}")
    return None
