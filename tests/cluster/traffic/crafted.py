# mypy: ignore-errors
"""Packets made by scapy, sent from a pod to another; the answers, one JSON object on standard output.

Run by the system's Python, which has scapy, as `python3 crafted.py 4|6 ADDRESS UDP-PORT`; the target echoes
what comes to UDP-PORT.
"""

import json
import logging
import sys

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.all import (  # noqa: E402
    ICMP,
    IP,
    TCP,
    UDP,
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPOption_NOP,
    IPOption_RR,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    Raw,
    conf,
    fragment,
    fragment6,
    send,
    sniff,
    sr1,
)

conf.verb = 0
ANSWER, SILENCE = 5, 0.3
# The answer has to fit into one packet.
DATA = bytes(range(256)) * 4


def asked(packet, *, denied=False):
    """The first answer, or None."""
    return sr1(packet, timeout=SILENCE if denied else ANSWER)


def seen(packets, wanted):
    """The first packet of those wanted that comes when `packets` are sent, or None."""
    found = sniff(
        timeout=ANSWER, count=1, lfilter=wanted, started_callback=lambda: [send(packet) for packet in packets]
    )
    return found[0] if found else None


def echoed(packets, port, source_port):
    """What UDP data comes back when `packets` are sent."""
    found = seen(packets, lambda p: p.haslayer(UDP) and p[UDP].sport == port and p[UDP].dport == source_port)
    return bytes(found[UDP].payload) if found else b""


def ipv4(to, port):
    syn = asked(IP(dst=to) / TCP(sport=40001, dport=port, flags="S"))
    closed = asked(IP(dst=to) / UDP(sport=40002, dport=port + 1) / b"x")
    recorded = asked(IP(dst=to, options=[IPOption_RR(routers=["0.0.0.0"] * 4)]) / ICMP(id=7) / b"data")
    padded = IP(dst=to, options=[IPOption_NOP()] * 40) / UDP(sport=40003, dport=port) / DATA[:100]
    whole = IP(dst=to, id=77) / UDP(sport=40004, dport=port) / DATA
    tiny = IP(dst=to, id=78) / UDP(sport=40005, dport=port) / DATA[:64]
    return {
        "syn": str(syn[TCP].flags) if syn and syn.haslayer(TCP) else "",
        "closed": [syn_type(closed), closed[3].dport if closed and closed.haslayer("UDPerror") else 0],
        "options": bool(recorded) and recorded[ICMP].type == 0 and bytes(recorded[Raw]) == b"data",
        "all options": echoed([padded], port, 40003) == DATA[:100],
        "fragments": echoed(fragment(whole, 512), port, 40004) == DATA,
        "tiny fragments": echoed(fragment(tiny, 8), port, 40005) == DATA[:64],
        "timestamp": asked(IP(dst=to) / ICMP(type=13), denied=True) is not None,
        "foreign source": asked(IP(src="198.51.100.9", dst=to) / ICMP(id=8), denied=True) is not None,
        "no version": asked(IP(dst=to, version=5) / ICMP(id=9), denied=True) is not None,
        "bad length": asked(IP(dst=to, len=2000) / ICMP(id=10), denied=True) is not None,
    }


def syn_type(packet):
    return [packet[ICMP].type, packet[ICMP].code] if packet and packet.haslayer(ICMP) else []


def ipv6(to, port):
    syn = asked(IPv6(dst=to) / TCP(sport=40001, dport=port, flags="S"))
    closed = asked(IPv6(dst=to) / UDP(sport=40002, dport=port + 1) / b"x")
    padding = [PadN(optdata=bytes(4))]
    headers = IPv6ExtHdrHopByHop(options=padding) / IPv6ExtHdrDestOpt(options=padding)
    request = IPv6(dst=to) / headers / ICMPv6EchoRequest(id=7, data=b"data")
    echo = seen([request], lambda p: p.haslayer(ICMPv6EchoReply) and p[ICMPv6EchoReply].id == 7)
    optioned = IPv6(dst=to) / headers / UDP(sport=40003, dport=port) / DATA[:100]
    whole = IPv6(dst=to) / IPv6ExtHdrFragment(id=77) / UDP(sport=40004, dport=port) / DATA
    atomic = IPv6(dst=to) / IPv6ExtHdrFragment(id=78) / UDP(sport=40005, dport=port) / DATA[:64]
    ping = ICMPv6EchoRequest(id=8)
    seven = IPv6ExtHdrDestOpt(options=padding)
    for _ in range(6):
        seven = seven / IPv6ExtHdrDestOpt(options=padding)
    return {
        "syn": str(syn[TCP].flags) if syn and syn.haslayer(TCP) else "",
        "closed": [
            [closed[ICMPv6DestUnreach].type, closed[ICMPv6DestUnreach].code]
            if closed and closed.haslayer(ICMPv6DestUnreach)
            else [],
            closed["UDPerror"].dport if closed and closed.haslayer("UDPerror") else 0,
        ],
        "options": bool(echo) and echo[ICMPv6EchoReply].data == b"data",
        "all options": echoed([optioned], port, 40003) == DATA[:100],
        "fragments": echoed(fragment6(whole, 600), port, 40004) == DATA,
        "tiny fragments": echoed([atomic], port, 40005) == DATA[:64],
        "source route": asked(IPv6(dst=to) / IPv6ExtHdrRouting(type=0, addresses=[to]) / ping, denied=True)
        is not None,
        "foreign source": asked(IPv6(src="2001:db8::9", dst=to) / ping, denied=True) is not None,
        "too many headers": asked(IPv6(dst=to) / seven / ping, denied=True) is not None,
        "bad length": asked(IPv6(dst=to, plen=2000) / ping, denied=True) is not None,
    }


if __name__ == "__main__":
    family, address, udp_port = sys.argv[1:]
    print(json.dumps((ipv4 if family == "4" else ipv6)(address, int(udp_port))))
