"""Settings of the loader that are more than a word or a number: what they say, and what is wrong with them.

Each function takes the variable's name and what it was given. Raises SettingsError.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from services.chassis.errors import InvalidArgument
from services.chassis.labels import SOURCE_K8S, Label, check_key, check_value
from services.chassis.settings import SettingsError

_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_DIRECTIONS = ("ingress", "egress")
# The kernel's rule for interface names (dev_valid_name), IFNAMSIZ 16 with the terminating zero.
_DEVICE = re.compile(r"[^\s/:]{1,15}")
_OURS = re.compile(r"fimbria_.*|lxc[0-9a-f]{12}|lo")
_POD_CIDRS = 16
_FAILSAFE = re.compile(r"(ingress|egress):([0-9]{1,5})/(TCP|UDP|SCTP)")

_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class FailsafePort:
    """A port of the node that no policy closes; ``protocol`` is the IP protocol number."""

    ingress: bool
    port: int
    protocol: int


def devices(variable: str, names: Sequence[str]) -> tuple[str, ...]:
    """Names of the node's own devices."""
    for name in names:
        if not _DEVICE.fullmatch(name) or name in (".", "..") or _OURS.fullmatch(name):
            raise SettingsError(
                variable,
                name,
                "names of devices towards the rest of the world, such as eth0 (none of Fimbria's)",
            )
    return tuple(dict.fromkeys(names))


def cidrs(variable: str, texts: Sequence[str]) -> tuple[str, ...]:
    """CIDRs of either family in canonical text; a bare address is the CIDR that holds it alone."""
    found = []
    for text in texts:
        try:
            found.append(str(ipaddress.ip_network(text)))
        except ValueError:
            raise SettingsError(
                variable,
                text,
                "CIDRs without host bits, comma separated, such as 10.0.0.0/8,fd00::/8",
            ) from None
    return tuple(dict.fromkeys(found))


def pod_cidrs(variable: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Pod CIDRs in canonical text, in the order given: at most 16, with room for pods, disjoint."""
    found = [ipaddress.ip_network(text) for text in cidrs(variable, texts)]
    expected = "at most 16 CIDRs of at least four addresses, comma separated, such as 10.244.1.0/24"
    for cidr in found:
        overlapping = [each for each in found if each is not cidr and _overlap(each, cidr)]
        if cidr.num_addresses < 4 or len(found) > _POD_CIDRS or overlapping:
            raise SettingsError(variable, str(cidr), f"{expected}, none of them within another")
    return tuple(map(str, found))


def _overlap(one: _Network, other: _Network) -> bool:
    return one.version == other.version and int(one[0]) <= int(other[-1]) and int(other[0]) <= int(one[-1])


def port_range(variable: str, text: str) -> tuple[int, int]:
    """First and last port of ``FIRST-LAST``."""
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text.strip())
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1024 <= first <= last <= 65535:
        raise SettingsError(variable, text, "FIRST-LAST with 1024 <= FIRST <= LAST <= 65535")
    return first, last


def node_labels(variable: str, texts: Sequence[str]) -> tuple[Label, ...]:
    """Labels of ``KEY=VALUE`` each, as Kubernetes has them."""
    found: dict[str, Label] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            check_key(key)
            check_value(value)
        except InvalidArgument:
            equals = ""
        label = Label(SOURCE_K8S, key, value)
        if not equals or found.setdefault(key, label) != label:
            raise SettingsError(
                variable,
                text,
                "KEY=VALUE, comma separated, as Kubernetes has labels, each key with one value",
            )
    return tuple(found.values())


def failsafe_ports(variable: str, texts: Sequence[str]) -> tuple[FailsafePort, ...]:
    """Ports of ``DIRECTION:PORT/PROTOCOL`` each."""
    found = []
    for text in texts:
        match = _FAILSAFE.fullmatch(text)
        if match is None or not 1 <= int(match[2]) <= 65535:
            raise SettingsError(
                variable,
                text,
                f"DIRECTION:PORT/PROTOCOL, comma separated, with {' or '.join(_DIRECTIONS)}, 1 to 65535 and "
                f"{', '.join(_PROTOCOLS)}, such as ingress:22/TCP",
            )
        found.append(FailsafePort(match[1] == "ingress", int(match[2]), _PROTOCOLS[match[3]]))
    return tuple(dict.fromkeys(found))


def map_sizes(variable: str, texts: Sequence[str]) -> dict[str, int]:
    """max_entries of ``MAP=ENTRIES`` each, by map."""
    found = {}
    for text in texts:
        name, _, size = text.partition("=")
        if not name or not size.isdecimal() or not 1 <= int(size) < 1 << 31:
            raise SettingsError(variable, text, "MAP=ENTRIES, comma separated, such as ct4=262144")
        found[name] = int(size)
    return found
