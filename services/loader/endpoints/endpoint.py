"""What an endpoint is: asked for, stored, and as it stands.

Three types, never mixed: the *spec* is what the runtime asked for; the *record* is what the node has given
it and keeps on disk; the *status* is what is in force now, and is lost with the process. No I/O here.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from services.chassis.errors import FieldViolation, InvalidArgument

RECORD_VERSION: Final = 3
# Version 1 had neither IPv6 nor a rate; version 2 knew one network and one interface of a pod.
_READABLE_VERSIONS: Final = (1, 2, RECORD_VERSION)
MAX_ENDPOINT_ID: Final = 65535
HOST_DEVICE_PREFIX: Final = "lxc"

# The runtime chooses the container id; the CNI specification allows just these characters. The bound keeps
# the owner ("<container id>/<interface>") within what the IPAM service takes.
_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,199}")
# The kernel's rule for interface names (dev_valid_name), IFNAMSIZ 16 with the terminating zero.
_IFNAME = re.compile(r"[^\s/:]{1,15}")


class Phase(enum.StrEnum):
    """How far the record itself has come. What a restart does with it depends on nothing else."""

    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"


class State(enum.Enum):
    """Where an endpoint is in its life, as others see it."""

    CREATING = 1
    READY = 2
    REGENERATING = 3
    DEGRADED = 4
    DELETING = 5


@dataclass(frozen=True, slots=True, order=True)
class NamedPort:
    """A port that a pod declares; ``protocol`` is the IP protocol number."""

    name: str
    port: int
    protocol: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Of a pod, what the choice of its address pool goes by: labels and annotations, its namespace's too."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    namespace_annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What the runtime asked for. ``labels`` are formatted and sorted, ``named_ports`` sorted; ``rate`` is
    what the pod may send in bytes/s, 0 for as much as it can.

    ``network`` is the name of the network configuration. ``mtu`` 0 is the node's, an empty ``mac`` one that
    the node makes. ``default_route``: whether the pod's traffic to elsewhere leaves here; None: unless
    another interface of the pod does that already. ``workload`` counts until the endpoint has its addresses,
    and is not kept.
    """

    container_id: str
    ifname: str
    netns: str
    pod_namespace: str = ""
    pod_name: str = ""
    labels: tuple[str, ...] = ()
    named_ports: tuple[NamedPort, ...] = ()
    rate: int = 0
    network: str = ""
    mtu: int = 0
    mac: str = ""
    default_route: bool | None = None
    workload: Workload = field(default=Workload(), compare=False)

    @property
    def owner(self) -> str:
        """Owner of the addresses in IPAM, and the natural key of the endpoint."""
        return owner_name(self.container_id, self.ifname)

    @property
    def host_device(self) -> str:
        """Name of the interface on the node."""
        return host_device(self.container_id, self.ifname)

    @property
    def pod(self) -> str:
        """``namespace/name``, or the owner for a container that is no pod."""
        return f"{self.pod_namespace}/{self.pod_name}" if self.pod_name else self.owner


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """What the node has given an endpoint. Fields that creation has not come to yet are 0 or empty, and so
    are addresses of a family that the node does not have.

    MACs are ``aa:bb:cc:dd:ee:ff``; ``create_time`` is in seconds since the epoch. ``default_routes`` has the
    IP versions whose default route leads through this interface. ``allocated_ns`` is when IPAM gave the
    addresses, in nanoseconds since the epoch by its clock, 0 where it was not told.
    """

    id: int
    spec: EndpointSpec
    phase: Phase
    create_time: float
    ipv4: str = ""
    router_ipv4: str = ""
    identity: int = 0
    identity_revision: int = 0
    subject: int = 0
    ifindex: int = 0
    host_mac: str = ""
    pod_mac: str = ""
    mtu: int = 0
    ipv6: str = ""
    router_ipv6: str = ""
    default_routes: tuple[int, ...] = (4, 6)
    allocated_ns: int = 0

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoint's addresses, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The endpoint's prefixes in the ipcache."""
        return tuple(host_prefix(address) for address in self.addresses)

    @property
    def rate(self) -> int:
        """What the pod may send in bytes/s, 0 for as much as it can."""
        return self.spec.rate


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """What is in force for an endpoint."""

    state: State
    last_error: str = ""
    policy_revision: int = 0
    ipcache_revision: int = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A record together with its status: what the API shows."""

    record: EndpointRecord
    status: EndpointStatus = field(default=EndpointStatus(State.CREATING))

    def having(self, **status: Any) -> Endpoint:
        """The same endpoint with some of its status changed."""
        return replace(self, status=replace(self.status, **status))


def host_prefix(address: str) -> str:
    """The prefix that holds one address."""
    return f"{address}/128" if ":" in address else f"{address}/32"


def owner_name(container_id: str, ifname: str) -> str:
    """``<container id>/<interface>``."""
    return f"{container_id}/{ifname}"


def host_device(container_id: str, ifname: str) -> str:
    """``lxc`` and 12 hex digits that depend on nothing but the container and its interface: 15 characters,
    all that Linux allows.
    """
    digest = hashlib.sha256(owner_name(container_id, ifname).encode()).hexdigest()
    return HOST_DEVICE_PREFIX + digest[:12]


def check_container(container_id: str, ifname: str) -> None:
    """Raises InvalidArgument (ENDPOINT_INVALID) unless both names are what the CNI specification and Linux
    allow.
    """
    if not _CONTAINER_ID.fullmatch(container_id):
        raise _invalid(
            "CNI_CONTAINERID",
            container_id,
            "1 to 200 characters of [a-zA-Z0-9_.-], the first alphanumeric",
        )
    if not _IFNAME.fullmatch(ifname) or ifname in (".", ".."):
        raise _invalid(
            "CNI_IFNAME", ifname, "an interface name: 1 to 15 characters without spaces, '/' and ':'"
        )


def _invalid(name: str, value: str, expected: str) -> InvalidArgument:
    return InvalidArgument(
        f"{name} is {value!r}; expected {expected}",
        reason="ENDPOINT_INVALID",
        metadata={"field": name},
        violations=[FieldViolation(name, f"{value!r}: expected {expected}")],
    )


def record_to_json(record: EndpointRecord) -> dict[str, Any]:
    """The record as it is stored."""
    spec = record.spec
    return {
        "version": RECORD_VERSION,
        "id": record.id,
        "phase": record.phase.value,
        "create_time": record.create_time,
        "spec": {
            "container_id": spec.container_id,
            "ifname": spec.ifname,
            "netns": spec.netns,
            "pod_namespace": spec.pod_namespace,
            "pod_name": spec.pod_name,
            "labels": list(spec.labels),
            "named_ports": [[port.name, port.port, port.protocol] for port in spec.named_ports],
            "rate": spec.rate,
            "network": spec.network,
            "mtu": spec.mtu,
            "mac": spec.mac,
            "default_route": spec.default_route,
        },
        "ipv4": record.ipv4,
        "router_ipv4": record.router_ipv4,
        "identity": record.identity,
        "identity_revision": record.identity_revision,
        "subject": record.subject,
        "ifindex": record.ifindex,
        "host_mac": record.host_mac,
        "pod_mac": record.pod_mac,
        "mtu": record.mtu,
        "ipv6": record.ipv6,
        "router_ipv6": record.router_ipv6,
        "default_routes": list(record.default_routes),
        "allocated_ns": record.allocated_ns,
    }


def record_from_json(document: Mapping[str, Any]) -> EndpointRecord:
    """The inverse of :func:`record_to_json`. Raises ValueError, KeyError or TypeError for anything else."""
    version = document["version"]
    if version not in _READABLE_VERSIONS:
        raise ValueError(
            f"record version is {version!r}; this loader reads {', '.join(map(str, _READABLE_VERSIONS))}"
        )
    raw = document["spec"]
    old, single = version == 1, version <= 2
    spec = EndpointSpec(
        container_id=_text(raw, "container_id"),
        ifname=_text(raw, "ifname"),
        netns=_text(raw, "netns"),
        pod_namespace=_text(raw, "pod_namespace"),
        pod_name=_text(raw, "pod_name"),
        labels=tuple(str(label) for label in raw["labels"]),
        named_ports=tuple(
            NamedPort(str(name), int(port), int(protocol)) for name, port, protocol in raw["named_ports"]
        ),
        rate=0 if old else _number(raw, "rate"),
        network="" if single else _text(raw, "network"),
        mtu=0 if single else _number(raw, "mtu"),
        mac="" if single else _text(raw, "mac"),
        default_route=None if single else _choice(raw, "default_route"),
    )
    return EndpointRecord(
        id=_number(document, "id"),
        spec=spec,
        phase=Phase(document["phase"]),
        create_time=float(document["create_time"]),
        ipv4=_text(document, "ipv4"),
        router_ipv4=_text(document, "router_ipv4"),
        identity=_number(document, "identity"),
        identity_revision=_number(document, "identity_revision"),
        subject=_number(document, "subject"),
        ifindex=_number(document, "ifindex"),
        host_mac=_text(document, "host_mac"),
        pod_mac=_text(document, "pod_mac"),
        mtu=_number(document, "mtu"),
        ipv6="" if old else _text(document, "ipv6"),
        router_ipv6="" if old else _text(document, "router_ipv6"),
        default_routes=(4, 6) if single else tuple(int(version) for version in document["default_routes"]),
        # Absent from what was written before releases named the allocation that they are of.
        allocated_ns=_number(document, "allocated_ns") if "allocated_ns" in document else 0,
    )


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}; expected a string")
    return value


def _number(document: Mapping[str, Any], key: str) -> int:
    value = document[key]
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{key} is {value!r}; expected a number")
    return value


def _choice(document: Mapping[str, Any], key: str) -> bool | None:
    value = document[key]
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{key} is {value!r}; expected true, false or null")
    return value
