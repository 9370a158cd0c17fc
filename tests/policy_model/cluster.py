# SPDX-License-Identifier: Apache-2.0
"""What a policy can be about: pods with their namespaces, nodes, and whoever is outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

# (source, key, value)
Label = tuple[str, str, str]

# Ends that are neither pods nor outside; `@host` is the node that all pods of a cluster run on here.
RESERVED_ENDS = (
    "@host",
    "@remote-node",
    "@health",
    "@kube-apiserver",
    "@ingress",
    "@unmanaged",
    "@init",
)
POD_NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABEL = "io.cilium.k8s.namespace.labels."
SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"
CLUSTER = "io.cilium.k8s.policy.cluster"


@cache
def parsed_address(text: str) -> IPv4Address | IPv6Address:
    return ip_address(text)


@cache
def parsed_network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text)


@dataclass(frozen=True, order=True)
class DeclaredPort:
    """A port of a container that has a name; `protocol` is TCP, UDP or SCTP."""

    name: str
    protocol: str
    number: int


@dataclass(frozen=True)
class Pod:
    """A pod as its manifest has it, and its addresses, at most one of each family."""

    namespace: str
    name: str
    labels: dict[str, str]
    ports: tuple[DeclaredPort, ...] = ()
    addresses: tuple[str, ...] = ()
    service_account: str = ""


@dataclass(frozen=True)
class End:
    """Somebody who talks, with all that can be asked about him."""

    name: str
    labels: frozenset[Label]
    addresses: tuple[str, ...]
    pod: Pod | None = None

    @property
    def is_outside(self) -> bool:
        return not self.name.startswith("@") and self.pod is None

    @property
    def is_host(self) -> bool:
        return self.name == "@host"

    def address(self, family: int) -> str | None:
        """His address of the family 4 or 6."""
        return next((text for text in self.addresses if parsed_address(text).version == family), None)


@dataclass(frozen=True)
class Connection:
    """A new connection. `protocol` is TCP, UDP, SCTP, ICMP or ICMPv6; of the last two `port` is the type."""

    source: str
    destination: str
    protocol: str
    port: int
    family: int = 4

    def __str__(self) -> str:
        return f"{self.source} -> {self.destination} {self.protocol}/{self.port} (IPv{self.family})"


@dataclass
class Cluster:
    """Everybody there is. `addresses` are those of the reserved ends."""

    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    node_labels: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def put(self, pod: Pod) -> None:
        self.pods[f"{pod.namespace}/{pod.name}"] = pod

    def end(self, name: str) -> End:
        """`NAMESPACE/POD`, one of RESERVED_ENDS, or the address of somebody outside."""
        if name.startswith("@"):
            return End(name, frozenset({("reserved", name[1:], "")}), self.addresses.get(name, ()))
        if "/" not in name:
            return End(name, frozenset({("reserved", "world", "")}), (name,))
        pod = self.pods[name]
        of_namespace = {
            **self.namespaces.get(pod.namespace, {}),
            "kubernetes.io/metadata.name": pod.namespace,
        }
        labels = {
            **pod.labels,
            **{NAMESPACE_LABEL + key: value for key, value in of_namespace.items()},
            POD_NAMESPACE: pod.namespace,
            CLUSTER: "default",
        }
        if pod.service_account:
            labels[SERVICE_ACCOUNT] = pod.service_account
        found = frozenset(("k8s", key, value) for key, value in labels.items())
        return End(name, found, pod.addresses, pod)

    def alike(self, end: End) -> tuple[Pod, ...]:
        """The pods that have the labels of this one, itself among them: they are one to egress policies."""
        return tuple(pod for name, pod in self.pods.items() if self.end(name).labels == end.labels)
