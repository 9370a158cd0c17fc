"""What a network configuration and a runtime say about the interface itself.

From the configuration: ``mtu``, ``isDefaultGateway``, ``sysctl``, ``dns``. From the runtime, as the CNI
conventions have it: ``runtimeConfig.bandwidth``, ``runtimeConfig.mac`` (or ``args.cni.mac``, or ``MAC`` in
CNI_ARGS), ``runtimeConfig.dns``. What is not said is the node's choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from services.loader.cni.bandwidth import parse_rate
from services.loader.cni.errors import CniCode, CniError

# Below 576 no IPv4 host need accept what it is sent (RFC 791); the node's own MTU bounds it from above.
MIN_MTU, MAX_MTU = 576, 65535
MAX_SYSCTLS = 64
MAX_SYSCTL_VALUE = 256
MAX_DNS_ITEMS = 32

_MAC = re.compile(r"[0-9a-f]{2}([:-])(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}", re.ASCII)
# Between dots; between slashes there may be dots too, as in the name of a VLAN device.
_DOTTED_PART = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_SLASHED_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", re.ASCII)
_SEPARATOR = re.compile(r"[./]")
# What the tuning plugin writes for the name of the container's interface.
_IFNAME = "IFNAME"
_DNS_LISTS = ("nameservers", "search", "options")
_DNS_CAPABILITY = {"servers": "nameservers", "searches": "search", "options": "options"}


@dataclass(frozen=True, slots=True)
class InterfaceSettings:
    """``rate`` is what the pod may send in bytes/s and ``mtu`` in bytes, 0 for the node's; ``mac`` is
    ``aa:bb:…`` or empty.

    ``default_route`` None: if the pod has no default route yet. ``sysctls`` are paths below /proc/sys, all
    under ``net/``, with their values; ``dns`` is as results have it.
    """

    rate: int = 0
    mtu: int = 0
    mac: str = ""
    default_route: bool | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    dns: Mapping[str, Any] = field(default_factory=dict)


ANY = InterfaceSettings()


def parse_interface(config: Mapping[str, Any], args: Mapping[str, str], ifname: str) -> InterfaceSettings:
    """The settings for the interface ``ifname``. Raises CniError 7, or 4 for CNI_ARGS, naming the field."""
    return InterfaceSettings(
        rate=parse_rate(config),
        mtu=_mtu(config),
        mac=_mac(config, args),
        default_route=_default_route(config),
        sysctls=parse_sysctls(config, ifname),
        dns=_dns(config),
    )


def parse_sysctls(config: Mapping[str, Any], ifname: str) -> dict[str, str]:
    """``sysctl`` as paths below /proc/sys (``net/core/somaxconn``) and values. Raises CniError 7."""
    asked = config.get("sysctl")
    if asked is None:
        return {}
    if not isinstance(asked, dict):
        raise _invalid("sysctl", asked, "an object of names and values")
    if len(asked) > MAX_SYSCTLS:
        raise _invalid("sysctl", f"{len(asked)} settings", f"at most {MAX_SYSCTLS}")
    found: dict[str, str] = {}
    for name, value in asked.items():
        text = isinstance(value, str) and value.isascii() and value.isprintable()
        if not text or not 0 < len(value) <= MAX_SYSCTL_VALUE:
            raise _invalid(
                f"sysctl[{name}]", value, f"a string of 1 to {MAX_SYSCTL_VALUE} printable characters"
            )
        path = sysctl_path(name, ifname)
        if found.setdefault(path, value) != value:
            raise _invalid(f"sysctl[{name}]", value, f"one value for /proc/sys/{path}")
    return found


def sysctl_path(name: str, ifname: str) -> str:
    """The path below /proc/sys of a setting in the pod's network namespace: ``net.core.somaxconn`` or
    ``net/core/somaxconn``, with ``IFNAME`` for the interface. Raises CniError 7.
    """
    # As sysctl(8): the first separator is the one that counts.
    first = _SEPARATOR.search(name)
    slashed = first is not None and first[0] == "/"
    parts, allowed = (name.split("/"), _SLASHED_PART) if slashed else (name.split("."), _DOTTED_PART)
    if len(parts) < 3 or parts[0] != "net" or not all(allowed.fullmatch(part) for part in parts):
        raise _invalid("sysctl", name, 'a name under "net.", such as "net.core.somaxconn"')
    return "/".join(ifname if part == _IFNAME else part for part in parts)


def _mtu(config: Mapping[str, Any]) -> int:
    mtu = config.get("mtu")
    # As in the reference plugins, 0 is no choice.
    if mtu is None or (mtu == 0 and not isinstance(mtu, bool)):
        return 0
    if not isinstance(mtu, int) or isinstance(mtu, bool) or not MIN_MTU <= mtu <= MAX_MTU:
        raise _invalid("mtu", mtu, f"{MIN_MTU}..{MAX_MTU}, at most the node's")
    return mtu


def _mac(config: Mapping[str, Any], args: Mapping[str, str]) -> str:
    for field_name, value in (
        ("runtimeConfig.mac", _peek(config, "runtimeConfig", "mac")),
        ("args.cni.mac", _peek(config, "args", "cni", "mac")),
        ("CNI_ARGS: MAC", args.get("MAC")),
    ):
        if value in (None, ""):
            continue
        if not isinstance(value, str) or not _MAC.fullmatch(value.lower()):
            raise _invalid(field_name, value, "a MAC address such as 02:00:5e:10:00:01")
        mac = value.lower().replace("-", ":")
        if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
            raise _invalid(field_name, value, "the MAC address of one host, not a group's and not zero")
        return mac
    return ""


def _default_route(config: Mapping[str, Any]) -> bool | None:
    asked = config.get("isDefaultGateway")
    if asked is not None and not isinstance(asked, bool):
        raise _invalid("isDefaultGateway", asked, "true or false")
    return asked


def _dns(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the runtime says of a pod's DNS goes before the configuration."""
    found: dict[str, Any] = {}
    dns = _object(config.get("dns"), "dns")
    for name in _DNS_LISTS:
        if items := _strings(dns.get(name), f"dns.{name}"):
            found[name] = items
    if (domain := dns.get("domain")) not in (None, ""):
        if not isinstance(domain, str):
            raise _invalid("dns.domain", domain, "a string")
        found["domain"] = domain
    runtime = _object(_peek(config, "runtimeConfig", "dns"), "runtimeConfig.dns")
    # Containerd begins them with capitals, which do not count for plugins in Go.
    runtime = {name.lower(): value for name, value in runtime.items()}
    for theirs, ours in _DNS_CAPABILITY.items():
        if items := _strings(runtime.get(theirs), f"runtimeConfig.dns.{theirs}"):
            found[ours] = items
    for server in found.get("nameservers", ()):
        try:
            ip_address(server)
        except ValueError:
            raise _invalid("dns.nameservers", server, "an IP address") from None
    return found


def _object(value: object, field_name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid(field_name, value, "an object")
    return value


def _strings(value: object, field_name: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _invalid(field_name, value, "a list of strings")
    if len(value) > MAX_DNS_ITEMS:
        raise _invalid(field_name, f"{len(value)} items", f"at most {MAX_DNS_ITEMS}")
    return value


def _peek(config: Mapping[str, Any], *path: str) -> Any:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _invalid(field_name: str, value: object, expected: str) -> CniError:
    if field_name.startswith("CNI_ARGS"):
        return CniError(
            CniCode.INVALID_ENVIRONMENT, f"invalid {field_name} {value!r}", f"expected {expected}"
        )
    return CniError(
        CniCode.INVALID_CONFIG,
        f"network configuration: {field_name}: got {value!r}; expected {expected}",
        field_name,
    )
