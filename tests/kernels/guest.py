"""What a machine runs: opens the datapath in a namespace, sends packets, writes what it saw as JSON.

    python -m tests.kernels.guest CACHE RESULT

CACHE holds the compiled programs: clang takes its time in here. RESULT has ``kernel``, ``failures``
(objects that the kernel refused, with the end of the verifier's log), ``attached`` (by device: tcx or
clsact), ``programs`` (instructions that the verifier went through), ``wrong`` (packets that were not
treated as they should) and ``packets`` (how many the programs counted).
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.loader.bpf.attach import Hook, filter_program
from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.datapath import SOURCES, KernelDatapath, NodeConfig
from services.loader.bpf.errors import BpfError, VerifierError
from services.loader.bpf.layout import EndpointRow
from services.loader.bpf.objects import load_object
from services.loader.bpf.testrun import TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT
from tests.bench.frames import ACK, RST, SYN, tcp_frame
from tests.kernel.bpf.conftest import add_node_devices, node_config
from tests.kernel.bpf.namespaces import Namespaces, run
from tests.kernel.bpf.node import (
    CLIENT,
    CLIENT_ID,
    CLIENT_SUBJECT,
    NODE,
    REMOTE,
    ROUTER,
    WEB,
    WEB_ID,
    WEB_SUBJECT,
    WORLD,
    Node,
    Rule,
    populate,
)
from tests.kernel.bpf.packets import MORE_FRAGMENTS, TCP, arp, echo, icmp_error, udp

_LOG_LINES = 12
_BPFFS = "/sys/fs/bpf/fimbria"
WEB6, CLIENT6 = "fd00:244:1::a", "fd00:244:1::b"
_SOURCES = str(Path(__file__).resolve().parents[2] / "bpf")


def main() -> int:
    """Writes the result; 0 even if the kernel refused the programs."""
    cache, result = sys.argv[1], Path(sys.argv[2])
    found: dict[str, object] = {"kernel": platform.release()}
    with Namespaces() as namespaces, namespaces.make("node").entered():
        add_node_devices(ROUTER)
        for device in ("lxcweb", "lxcclient"):
            run("ip", "link", "add", device, "type", "veth", "peer", "name", f"p{device}")
            run("ip", "link", "set", device, "up")
        config = node_config("node-1", NODE, ROUTER, "10.244.1.0/24")
        found["failures"] = failures = list(_failures(cache, config))
        if not failures:
            with _opened(cache, config) as node:
                found["programs"] = node.datapath.report.verified_insns
                found["attached"] = _attached(node)
                found["wrong"] = [name for name, right in _packets(node) if not right]
                found["packets"] = sum(metric.packets for metric in node.datapath.metrics())
    result.write_text(json.dumps(found))
    return 0


def _failures(cache: str, config: NodeConfig) -> Iterator[dict[str, object]]:
    """What of the objects the kernel refuses; the first program of each."""
    for compiled in compile_sources(_SOURCES, SOURCES, cache):
        try:
            loaded = load_object(
                compiled.path,
                map_dir=f"{_BPFFS}-none",
                config=config.constants(),
                map_sizes=config.map_sizes,
            )
        except VerifierError as error:
            lines = [line for line in error.log.splitlines() if line.strip()]
            yield {"object": compiled.source, "program": error.program, "log": lines[-_LOG_LINES:]}
        except BpfError as error:
            yield {"object": compiled.source, "program": "", "log": [str(error)]}
        else:
            for fd in (*loaded.maps.values(), *(program.fd for program in loaded.programs.values())):
                os.close(fd)


@contextmanager
def _opened(cache: str, config: NodeConfig) -> Iterator[Node]:
    """A node as in the kernel tests, with endpoints that have IPv6 too."""
    opened = KernelDatapath.open(config, pin_dir=_BPFFS, source_dir=_SOURCES, cache_dir=cache)
    try:
        web = _endpoint("lxcweb", 11, WEB, WEB6, WEB_ID, WEB_SUBJECT)
        client = _endpoint("lxcclient", 12, CLIENT, CLIENT6, CLIENT_ID, CLIENT_SUBJECT)
        node = Node(opened, web, client, config.host_ifindex)
        populate(node)
        yield node
    finally:
        opened.close()


def _endpoint(device: str, number: int, ipv4: str, ipv6: str, identity: int, subject: int) -> EndpointRow:
    pod_mac, host_mac = (f"02:00:00:00:{number:02x}:{end:02x}" for end in (1, 2))
    index = socket.if_nametoindex(device)
    return EndpointRow(index, ipv4, identity, subject, number, pod_mac, host_mac, ipv6=ipv6)


def _attached(node: Node) -> dict[str, str]:
    """How programs are attached, by device."""
    places = {
        "fimbria_host": (node.host_ifindex, Hook.EGRESS),
        "fimbria_vxlan": (node.datapath.config.vxlan_ifindex, Hook.INGRESS),
        "endpoint": (node.web.ifindex, Hook.INGRESS),
    }
    return {device: "tcx" if filter_program(*place) is None else "clsact" for device, place in places.items()}


def _packets(node: Node) -> Iterator[tuple[str, bool]]:
    """Packets by what they show, and whether the programs did with each what they should."""
    for web, client in ((WEB, CLIENT), (WEB6, CLIENT6)):
        yield from _policy(node, web, client)
    yield from _ways(node)
    yield from _odd_ones(node)


def _policy(node: Node, web: str, client: str) -> Iterator[tuple[str, bool]]:
    """A connection under changing policy, between the two endpoints."""
    family = "IPv6" if ":" in web else "IPv4"

    def request(flags: int, port: int = 80) -> int:
        return node.leave(node.client, tcp_frame(client, web, 4000, port, flags)).action

    def answer(flags: int) -> int:
        return node.leave(node.web, tcp_frame(web, client, 80, 4000, flags)).action

    node.policy(WEB_SUBJECT)
    yield f"{family}: without policy", request(SYN) == TC_ACT_REDIRECT
    yield f"{family}: an answer", answer(SYN | ACK) == TC_ACT_REDIRECT
    yield f"{family}: established", request(ACK) == TC_ACT_REDIRECT
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 81)])
    yield f"{family}: no longer allowed", request(ACK) == TC_ACT_SHOT
    yield f"{family}: another port allowed", request(SYN, 81) == TC_ACT_REDIRECT
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80, 12)])
    yield f"{family}: allowed by a range", request(ACK) == TC_ACT_REDIRECT
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID), Rule(0, TCP, 80, deny=True)])
    yield f"{family}: denied", request(ACK) == TC_ACT_SHOT
    yield f"{family}: another port not denied", request(SYN, 82) == TC_ACT_REDIRECT
    node.policy(WEB_SUBJECT)
    yield f"{family}: allowed again", request(ACK) == TC_ACT_REDIRECT
    yield f"{family}: reset", request(RST) == TC_ACT_REDIRECT
    forged = tcp_frame(web, client, 1, 2, SYN)
    yield f"{family}: forged source", node.leave(node.client, forged).action == TC_ACT_SHOT


def _ways(node: Node) -> Iterator[tuple[str, bool]]:
    """Where packets go, and where they come from."""
    sent = {
        address: node.leave(node.client, tcp_frame(CLIENT, address, 4100, 80, SYN))
        for address in (REMOTE, WORLD, NODE)
    }
    yield "to a node", sent[REMOTE].action == TC_ACT_REDIRECT
    yield "to the world", sent[WORLD].action == TC_ACT_OK and sent[WORLD].mark != 0
    yield "to the host", sent[NODE].action == TC_ACT_OK
    yield "from the host", node.arrive(node.web, tcp_frame(NODE, WEB, 4100, 80, SYN)).action == TC_ACT_OK
    from_node = node.host_sends(tcp_frame(NODE, WEB, 4101, 80, SYN))
    yield "by the host's device", from_node.action == TC_ACT_REDIRECT


def _odd_ones(node: Node) -> Iterator[tuple[str, bool]]:
    """What takes other ways through the programs."""

    def leave(frame: bytes) -> int:
        return node.leave(node.client, frame).action

    yield "ARP", leave(arp(1, CLIENT, "10.244.1.1")) == TC_ACT_REDIRECT
    yield "echo", leave(echo(CLIENT, WEB, 7)) == TC_ACT_REDIRECT
    yield "echo reply to nothing", leave(echo(CLIENT, WEB, 8, reply=True)) == TC_ACT_SHOT
    first = udp(CLIENT, WEB, 5000, 53, b"x" * 24, ident=9, fragment=MORE_FRAGMENTS)
    later = udp(CLIENT, WEB, 5000, 53, b"x" * 24, ident=9, fragment=4)
    lost = udp(CLIENT, WEB, 5000, 53, b"x" * 24, ident=10, fragment=4)
    yield "a first fragment", leave(first) == TC_ACT_REDIRECT
    yield "a later fragment", leave(later) == TC_ACT_REDIRECT
    yield "a fragment without a first", leave(lost) == TC_ACT_SHOT
    sent = udp(WEB, CLIENT, 53, 5001)
    yield "UDP", node.leave(node.web, sent).action == TC_ACT_REDIRECT
    yield "an error about it", leave(icmp_error(CLIENT, sent)) == TC_ACT_REDIRECT
    yield "an error about nothing", leave(icmp_error(CLIENT, udp(WEB, CLIENT, 53, 5002))) == TC_ACT_SHOT
    yield "a cut header", leave(udp(CLIENT, WEB, 1, 2)[:40]) == TC_ACT_SHOT


if __name__ == "__main__":
    sys.exit(main())
