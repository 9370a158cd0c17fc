"""The result of the plugins before this one in a chain, which an ADD is given and must pass on with its own.

Only what is needed is looked into; the rest is passed on as it came, less what the result's version does not
know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any

from services.loader.cni.errors import CniCode, CniError

_DNS_LISTS = ("nameservers", "search", "options")
# Members that came with version 1.1.0.
_NEW_IN_INTERFACES = ("mtu", "socketPath", "pciID")
_NEW_IN_ROUTES = ("mtu", "advmss", "priority", "table", "scope")


@dataclass(frozen=True, slots=True)
class PrevResult:
    """Interfaces, addresses and routes of the plugins before, and what they said of DNS."""

    interfaces: tuple[Mapping[str, Any], ...] = ()
    ips: tuple[Mapping[str, Any], ...] = ()
    routes: tuple[Mapping[str, Any], ...] = ()
    dns: Mapping[str, Any] = field(default_factory=dict)


NOTHING = PrevResult()


def parse_prev_result(config: Mapping[str, Any], ifname: str) -> PrevResult:
    """The configuration's ``prevResult``; empty when there is none.

    Raises CniError 7 when it makes no sense, 4 when the interface is in it already.
    """
    prev = config.get("prevResult")
    if prev is None:
        return NOTHING
    if not isinstance(prev, dict):
        raise _invalid("prevResult", prev, "an object")
    interfaces, ips, routes = (_objects(prev, key) for key in ("interfaces", "ips", "routes"))
    for index, interface in enumerate(interfaces):
        if interface.get("name") == ifname and interface.get("sandbox"):
            raise CniError(
                CniCode.INVALID_ENVIRONMENT,
                f"CNI_IFNAME {ifname}: prevResult.interfaces[{index}] is an interface of that name; "
                "a plugin before this one in the chain has made it",
                "expected a name of its own: make this plugin the first that adds an interface, or the only",
            )
    for index, ip in enumerate(ips):
        _check_ip(f"prevResult.ips[{index}]", ip, len(interfaces))
    dns = prev.get("dns")
    if dns is not None and not isinstance(dns, dict):
        raise _invalid("prevResult.dns", dns, "an object")
    for key in _DNS_LISTS:
        items = (dns or {}).get(key) or []
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise _invalid(f"prevResult.dns.{key}", items, "a list of strings")
    return PrevResult(interfaces, ips, routes, dns or {})


def merge(prev: PrevResult, own: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The members of a result that has both: ``own`` after those of ``prev``, with its addresses pointing to
    its interfaces where they are now.
    """
    shift = len(prev.interfaces)
    ips = [*prev.ips, *({**ip, "interface": ip["interface"] + shift} for ip in own["ips"])]
    return {
        "interfaces": [
            _without(item, _NEW_IN_INTERFACES, version) for item in (*prev.interfaces, *own["interfaces"])
        ],
        "ips": [_versioned(ip, version) for ip in ips],
        "routes": [_without(item, _NEW_IN_ROUTES, version) for item in (*prev.routes, *own["routes"])],
        "dns": _merge_dns(prev.dns, own["dns"]),
    }


def _versioned(ip: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Before 1.0.0 an address tells its IP version, since then it does not."""
    rest = {key: value for key, value in ip.items() if key != "version"}
    if version not in ("0.3.1", "0.4.0"):
        return rest
    return {"version": str(ip_interface(ip["address"]).version), **rest}


def _without(item: Mapping[str, Any], names: tuple[str, ...], version: str) -> dict[str, Any]:
    return {key: value for key, value in item.items() if version == "1.1.0" or key not in names}


def _merge_dns(prev: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {**own, **{key: value for key, value in prev.items() if value}}
    for key in _DNS_LISTS:
        items = [*(prev.get(key) or ()), *(own.get(key) or ())]
        if items:
            merged[key] = list(dict.fromkeys(items))
    return merged


def _check_ip(name: str, ip: Mapping[str, Any], interfaces: int) -> None:
    address, interface = ip.get("address"), ip.get("interface")
    try:
        ip_interface(address if isinstance(address, str) else "")
    except ValueError:
        raise _invalid(f"{name}.address", address, "an address with a prefix length") from None
    whole = isinstance(interface, int) and not isinstance(interface, bool)
    if interface is not None and not (whole and 0 <= interface < interfaces):
        raise _invalid(
            f"{name}.interface", interface, f"an index of prevResult.interfaces, below {interfaces}"
        )


def _objects(prev: Mapping[str, Any], key: str) -> tuple[dict[str, Any], ...]:
    items = prev.get(key)
    if items is None:
        return ()
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _invalid(f"prevResult.{key}", items, "a list of objects")
    return tuple(items)


def _invalid(name: str, value: object, expected: str) -> CniError:
    return CniError(
        CniCode.INVALID_CONFIG, f"network configuration: {name}: got {value!r}; expected {expected}", name
    )
