"""Why a packet is dropped. The numbers are those of bpf/lib/drop_reasons.h."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.model.parsing import Header


class Reason(IntEnum):
    """The reasons that the page names."""

    INVALID_SOURCE = 132
    POLICY = 133
    INVALID_PACKET = 134
    CT_HEADER = 135
    UNSUPPORTED_L3 = 139
    UNKNOWN_L4 = 142
    UNKNOWN_ICMP4 = 144
    UNKNOWN_ICMP6 = 146
    NO_TUNNEL_KEY = 147
    NO_LOCAL_CONTAINER = 152
    INVALID_EXTENSION_HEADER = 156
    NO_TUNNEL_ENDPOINT = 160
    BANDWIDTH = 162
    UNKNOWN_CT = 163
    UNSUPPORTED_L2 = 166
    NO_MAPPING = 167
    INVALID_IDENTITY = 171
    FRAGMENT_NOT_FOUND = 175
    POLICY_DENY = 181
    POLICY_NOT_READY = 220
    NO_ENDPOINT_ROW = 221
    ARP_IGNORED = 222
    ND_IGNORED = 224


class Drop(Exception):
    """The packet goes no further."""

    def __init__(self, reason: Reason, header: Header | None = None) -> None:
        super().__init__(reason.name)
        self.reason = reason
        # Of a packet that fails in layer 4: where that begins, and what it is.
        self.header = header
