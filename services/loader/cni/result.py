"""Results of ADD, in the versions of the specification, and the comparison that CHECK asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Any

import orjson

from services.loader.cni.prev_result import NOTHING, PrevResult, merge


@dataclass(frozen=True, slots=True)
class CniInterface:
    """An interface; ``sandbox`` is the namespace path of one in the container, empty for one on the node.
    ``mtu`` is 0 where nothing is said of it.
    """

    name: str
    mac: str
    sandbox: str = ""
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class CniIp:
    """An address of ``interfaces[interface]``."""

    address: IPv4Interface | IPv6Interface
    gateway: IPv4Address | IPv6Address
    interface: int


@dataclass(frozen=True, slots=True)
class CniRoute:
    """A route inside the container."""

    dst: IPv4Network | IPv6Network
    gw: IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class CniResult:
    """What an ADD made."""

    interfaces: tuple[CniInterface, ...]
    ips: tuple[CniIp, ...]
    routes: tuple[CniRoute, ...]
    dns: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def for_link(
        cls,
        *,
        host_name: str,
        host_mac: str,
        ifname: str,
        pod_mac: str,
        netns_path: str,
        addresses: Sequence[tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address]],
        dns: Mapping[str, Any] | None = None,
        mtu: int = 0,
        default_routes: Sequence[int] = (4, 6),
    ) -> CniResult:
        """The result for one veth pair. ``addresses`` are an address and its router by family; those of the
        IP versions in ``default_routes`` have a default route.
        """
        return cls(
            interfaces=(
                CniInterface(host_name, host_mac, mtu=mtu),
                CniInterface(ifname, pod_mac, netns_path, mtu),
            ),
            ips=tuple(CniIp(ip_interface(address), router, 1) for address, router in addresses),
            routes=tuple(
                CniRoute(ip_network("0.0.0.0/0" if router.version == 4 else "::/0"), router)
                for _, router in addresses
                if router.version in default_routes
            ),
            dns=dns or {},
        )

    def render(self, version: str, prev: PrevResult = NOTHING) -> bytes:
        """The result JSON of a supported ``version``, behind what the plugins before made."""
        own = {
            "interfaces": [
                {
                    "name": interface.name,
                    "mac": interface.mac,
                    **({"mtu": interface.mtu} if interface.mtu else {}),
                    **({"sandbox": interface.sandbox} if interface.sandbox else {}),
                }
                for interface in self.interfaces
            ],
            "ips": [
                {"interface": ip.interface, "address": str(ip.address), "gateway": str(ip.gateway)}
                for ip in self.ips
            ],
            "routes": [{"dst": str(route.dst), "gw": str(route.gw)} for route in self.routes],
            "dns": dict(self.dns),
        }
        return orjson.dumps({"cniVersion": version, **merge(prev, own, version)})


def prev_result_problems(prev: Mapping[str, Any], actual: CniResult) -> list[str]:
    """How a runtime's ``prevResult`` differs from what there is, in words; empty when it does not.

    Interfaces, addresses and routes that other plugins of a chain added are none of this one's business: what
    is asked is that everything this plugin made is still told as it is.
    """
    problems: list[str] = []
    interfaces = _objects(prev, "interfaces")
    for interface in actual.interfaces:
        told = next((item for item in interfaces if item.get("name") == interface.name), None)
        if told is None:
            problems.append(f"prevResult.interfaces has no {interface.name!r}")
            continue
        mac = told.get("mac")
        if mac and str(mac).lower() != interface.mac.lower():
            problems.append(
                f"prevResult.interfaces[{interface.name}].mac is {mac!r}; it is {interface.mac!r}"
            )
        if interface.mtu and told.get("mtu", interface.mtu) != interface.mtu:
            problems.append(
                f"prevResult.interfaces[{interface.name}].mtu is {told.get('mtu')!r}; it is {interface.mtu}"
            )
        if told.get("sandbox", "") != interface.sandbox:
            problems.append(
                f"prevResult.interfaces[{interface.name}].sandbox is {told.get('sandbox', '')!r}; "
                f"it is {interface.sandbox!r}"
            )
    addresses = {str(item.get("address")): item for item in _objects(prev, "ips")}
    for ip in actual.ips:
        told = addresses.get(str(ip.address))
        if told is None:
            problems.append(f"prevResult.ips has {sorted(addresses)}; the address is {ip.address}")
        elif told.get("gateway") and told.get("gateway") != str(ip.gateway):
            problems.append(
                f"prevResult.ips[{ip.address}].gateway is {told.get('gateway')!r}; it is {ip.gateway}"
            )
    routes = {(str(item.get("dst")), str(item.get("gw") or "")) for item in _objects(prev, "routes")}
    problems += [
        f"prevResult.routes has no {route.dst} via {route.gw}"
        for route in actual.routes
        if (str(route.dst), str(route.gw)) not in routes
    ]
    return problems


def _objects(prev: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items = prev.get(key)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
