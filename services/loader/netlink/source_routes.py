"""Routes of a pod's further interfaces.

The pod's default routes lead through one of its interfaces. An answer that left there with another
interface's address would be taken for a forgery; so what has the address of a further interface is routed by
a table of that interface's own, which holds a default route through it. The router's host route goes beside
the first interface's, with a metric of its own.

Such a rule, unlike a route, outlives its device: :func:`forget_source_rules` removes those whose device is
gone.
"""

from __future__ import annotations

import socket

from services.loader.netlink import rtnetlink as rt
from services.loader.netlink.namespace import NamespaceThread

# As the loader marks its routes on the node (netlink/node_routes.py).
RULE_PROTOCOL = 211
# Before the main table's rule (32766), after the local table's (0).
RULE_PRIORITY = 1000
# Far from the tables that people number by hand; the interface's index is added.
FIRST_TABLE = 1_000_000
FIRST_METRIC = 10_000

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def source_table(ifindex: int) -> int:
    """The number of an interface's own table."""
    return FIRST_TABLE + ifindex


def has_default_route(pod: rt.RouteSocket, family: int) -> bool:
    """Whether the pod's main table has a default route of a family."""
    (answer,) = pod.request([rt.dump_routes(family)])
    return any(route.prefix_len == 0 for route in rt.routes(answer))


def source_routes(ifindex: int, address: str, router: str, mtu: int) -> list[rt.Message]:
    """What makes an address of a further interface usable, in the pod's namespace."""
    table = source_table(ifindex)
    return [
        rt.add_link_route(ifindex, router, metric=FIRST_METRIC + ifindex),
        # By this the kernel finds the gateway on this device: for IPv6 "onlink" would not be believed where
        # another device has a route to it.
        rt.add_link_route(ifindex, router, table=table),
        rt.add_default_route(ifindex, router, mtu, table=table),
        rt.add_source_rule(address, table, RULE_PRIORITY, RULE_PROTOCOL),
    ]


def source_route_problems(
    pod: rt.RouteSocket, ifindex: int, address: str, router: str, mtu: int
) -> list[str]:
    """How the pod's routes differ from those of :func:`source_routes`, in words."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    table = source_table(ifindex)
    (answer,) = pod.request([rt.dump_rules(family)])
    (routes,) = pod.request([rt.dump_routes(family, table)])
    problems = []
    if (address, table) not in [(rule.source, rule.table) for rule in rt.rules(answer)]:
        problems.append(f"the pod has no rule from {address} to table {table}")
    found = [
        r for r in rt.routes(routes, table=table) if (r.prefix_len, r.oif, r.gateway) == (0, ifindex, router)
    ]
    if not found:
        problems.append(f"the pod's table {table} has no default route via {router}")
    elif all(route.mtu != mtu for route in found):
        problems.append(
            f"the default route of the pod's table {table} has mtu {found[0].mtu}; expected {mtu}"
        )
    return problems


def forget_source_rules(netns_fd: int, thread: NamespaceThread) -> None:
    """Removes our rules in a pod whose interface is gone. Raises OSError, Unavailable."""
    with thread.open_socket(netns_fd) as pod:
        (devices,) = pod.request([rt.dump_links()])
        tables = {source_table(link.ifindex) for link in rt.links(devices)}
        for family in _FAMILIES:
            (answer,) = pod.request([rt.dump_rules(family)])
            pod.request([rt.delete_source_rule(rule) for rule in rt.rules(answer) if _stale(rule, tables)])


def _stale(rule: rt.RuleInfo, tables: set[int]) -> bool:
    return rule.protocol == RULE_PROTOCOL and rule.table > FIRST_TABLE and rule.table not in tables
