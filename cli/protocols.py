"""Protocols by their names: as IP numbers, in flows and policy entries, and as the protos have them."""

from __future__ import annotations

from fimbria.types.v1 import types_pb2

# By IP protocol number.
PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


def protocol_number(name: str) -> types_pb2.Protocol.ValueType:
    """The proto's value for TCP, UDP, SCTP, ICMP or ICMPv6."""
    return types_pb2.Protocol.Value(f"PROTOCOL_{name.upper()}")
