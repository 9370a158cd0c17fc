"""The kinds of node that are fuzzed."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fuzz.addresses import FAMILIES
from tests.fuzz.model.parsing import TCP, UDP
from tests.fuzz.model.world import Socket


@dataclass(frozen=True, slots=True)
class Variant:
    """How the node is set up, which programs are built for: constant over a session.

    ``families`` are those of pods, ``node_families`` those of the node's own addresses.
    """

    name: str
    tunnel: bool = True
    endpoint_routes: bool = False
    host_routing: bool = True
    masquerade: bool = False
    ports: tuple[int, int] = (61000, 65535)
    sockets: tuple[Socket, ...] = ()
    families: tuple[int, ...] = (4, 6)
    node_families: tuple[int, ...] = (4, 6)


# So few that they run out, among them some that the node's own sockets use.
_FEW = (1022, 1027)
_NODE4, _NODE6 = FAMILIES[4].node, FAMILIES[6].node
_PEER4, _PEER6 = FAMILIES[4].other[0], FAMILIES[6].other[0]
_SOCKETS = (
    Socket(_NODE4, UDP, 1022),
    Socket(_NODE6, UDP, 1023),
    Socket(_NODE4, UDP, 1026, peer=(_PEER4, 80)),
    Socket(_NODE6, UDP, 1026, peer=(_PEER6, 443)),
    # Somebody has connected to these, and the node has to others.
    Socket(_NODE4, TCP, 1024),
    Socket(_NODE4, TCP, 1024, peer=(_PEER4, 1025)),
    Socket(_NODE6, TCP, 80),
    Socket(_NODE6, TCP, 80, peer=(_PEER6, 40000)),
    Socket(_NODE4, TCP, 1025, peer=(_PEER4, 80)),
    Socket(_NODE6, TCP, 40001, peer=(_PEER6, 443)),
)

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("tunnel", masquerade=True),
        Variant("tunnel-stack", host_routing=False, sockets=_SOCKETS),
        Variant(
            "tunnel-endpoint-routes", endpoint_routes=True, masquerade=True, ports=_FEW, sockets=_SOCKETS
        ),
        Variant("tunnel-ipv4-node", masquerade=True, node_families=(4,)),
        Variant("native", tunnel=False, masquerade=True, ports=_FEW, sockets=_SOCKETS),
        Variant("native-endpoint-routes", tunnel=False, endpoint_routes=True, host_routing=False),
    )
}
