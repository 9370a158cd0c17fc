"""Names for the numbers in bpf/lib/drop_reasons.h and bpf/lib/source_files.h; a test holds them together."""

from __future__ import annotations

FORWARDED = 0
INVALID_SIP = 132
POLICY = 133
INVALID = 134
CT_INVALID_HDR = 135
UNKNOWN_L3 = 139
WRITE_ERROR = 141
UNKNOWN_L4 = 142
UNKNOWN_ICMP4_TYPE = 144
UNKNOWN_ICMP6_TYPE = 146
NO_TUNNEL_KEY = 147
NO_LXC = 152
CSUM_L3 = 153
CSUM_L4 = 154
CT_CREATE_FAILED = 155
INVALID_EXTHDR = 156
FRAG_NOSUPPORT = 157
NO_TUNNEL_ENDPOINT = 160
EDT_HORIZON = 162
UNKNOWN_CT = 163
UNSUPPORTED_L2 = 166
NAT_NO_MAPPING = 167
NAT_UNSUPP_PROTO = 168
INVALID_IDENTITY = 171
FRAG_NOT_FOUND = 175
POLICY_DENY = 181
TTL_EXCEEDED = 196
POLICY_NOT_READY = 220
NO_ENDPOINT_ROW = 221
ARP_IGNORED = 222
TUNNEL_KEY_FAILED = 223
ND_IGNORED = 224
EVENT_LOST = 230

REASON_NAMES: dict[int, str] = {
    FORWARDED: "Forwarded",
    INVALID_SIP: "Invalid source ip",
    POLICY: "Policy denied",
    INVALID: "Invalid packet",
    CT_INVALID_HDR: "CT: Truncated or invalid header",
    UNKNOWN_L3: "Unsupported L3 protocol",
    WRITE_ERROR: "Error while writing to packet",
    UNKNOWN_L4: "Unknown L4 protocol",
    UNKNOWN_ICMP4_TYPE: "Unknown ICMPv4 type",
    UNKNOWN_ICMP6_TYPE: "Unknown ICMPv6 type",
    NO_TUNNEL_KEY: "Error retrieving tunnel key",
    NO_LXC: "No matching local container found",
    CSUM_L3: "Error while correcting L3 checksum",
    CSUM_L4: "Error while correcting L4 checksum",
    CT_CREATE_FAILED: "CT: Map insertion failed",
    INVALID_EXTHDR: "Invalid IPv6 extension header",
    FRAG_NOSUPPORT: "IP fragmentation not supported",
    NO_TUNNEL_ENDPOINT: "No tunnel/encapsulation endpoint (datapath BUG!)",
    EDT_HORIZON: "Bandwidth limit: departure too far ahead",
    UNKNOWN_CT: "Unknown connection tracking state",
    UNSUPPORTED_L2: "Unsupported L2 protocol",
    NAT_NO_MAPPING: "No mapping for NAT masquerade",
    NAT_UNSUPP_PROTO: "Unsupported protocol for NAT masquerade",
    INVALID_IDENTITY: "Invalid identity",
    FRAG_NOT_FOUND: "First logical datagram fragment not found",
    POLICY_DENY: "Policy denied by denylist",
    TTL_EXCEEDED: "TTL exceeded",
    POLICY_NOT_READY: "Policy of the endpoint not realized yet",
    NO_ENDPOINT_ROW: "Device is not registered as an endpoint",
    ARP_IGNORED: "ARP that needs no answer",
    TUNNEL_KEY_FAILED: "Error setting tunnel key",
    ND_IGNORED: "ND or MLD message that needs no answer",
    EVENT_LOST: "Event lost",
}

SOURCE_FILES: dict[int, str] = {
    1: "bpf_lxc.c",
    2: "bpf_overlay.c",
    3: "bpf_host.c",
    4: "parse.h",
    5: "policy.h",
    6: "flow.h",
    7: "arp.h",
    8: "encap.h",
    9: "deliver.h",
    10: "identity.h",
    11: "parse6.h",
    12: "nd.h",
    13: "forward.h",
    14: "nat.h",
    15: "edt.h",
    16: "host.h",
    17: "nat_icmp.h",
    18: "conntrack.h",
    19: "receive.h",
    20: "nat_port.h",
    21: "nat_rewrite.h",
    22: "policy_spaces.h",
}


def reason_name(reason: int) -> str:
    """A reason in words; ``reason N`` for one that this version does not know."""
    return REASON_NAMES.get(reason, f"reason {reason}")


def source_file(number: int) -> str:
    """The file that made an event; ``file N`` for one that this version does not know."""
    return SOURCE_FILES.get(number, f"file {number}")
