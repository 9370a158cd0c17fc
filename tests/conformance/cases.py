"""The published cases as data: which there are, and what their actions and probes mean."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("netpol_cases.json")
OWN_FILE = Path(__file__).with_name("own_cases.yaml")
HOST, REMOTE_NODE, HEALTH = "@host", "@remote-node", "@health"
# Fields of manifests that name addresses: such policies are about those, not about all that their pods have.
_ADDRESSES = {"ipBlock", "toCIDR", "toCIDRSet", "fromCIDR", "fromCIDRSet", "networks", "cidr"}
# What manifests of our own cases leave out.
_API_VERSIONS = {
    "NetworkPolicy": "networking.k8s.io/v1",
    "AdminNetworkPolicy": "policy.networking.k8s.io/v1alpha1",
    "BaselineAdminNetworkPolicy": "policy.networking.k8s.io/v1alpha1",
    "Policy": "fimbria.io/v1",
}
_OWN_PROBE = re.compile(r"(.+) -> (\S+) (\d+)/(\w+) (allow|deny)")

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Probe:
    """One connection and what becomes of it. The port of ICMP is the type.

    Ends are `namespace/name`, `@host` (the node of the other end's pod), `@remote-node` (another one),
    `@health`, or an address outside the cluster.
    """

    source: str
    target: str
    protocol: str
    port: int
    allowed: bool

    def families(self, case: Case) -> tuple[int, ...]:
        """IP versions over which it is sent. What a policy says of pods, nodes and the world it says of all
        their addresses, unless it names some."""
        if self.protocol == "ICMPV6" or any(":" in end for end in self.ends):
            return (6,)
        if self.protocol == "ICMP" or case.names_addresses:
            return (4,)
        return (4, 6)

    @property
    def ends(self) -> tuple[str, str]:
        return self.source, self.target

    @property
    def within_a_pod(self) -> bool:
        """It never leaves the pod, and no policy sees it."""
        return self.source == self.target

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} {self.port}/{self.protocol}"


@dataclass(frozen=True)
class Stage:
    """Actions, and the probes after them."""

    actions: Sequence[Mapping[str, Any]]
    probes: Sequence[Probe]


@dataclass(frozen=True)
class Pod:
    """A pod as a case asks for it."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    ports: tuple[tuple[str, int, str], ...]
    """(name, number, protocol) of those that it declares by name."""
    service_account: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Case:
    """A published case. The first stage's actions create its policies."""

    id: str
    description: str
    namespaces: Mapping[str, Mapping[str, str]]
    pods: Sequence[Pod]
    stages: Sequence[Stage]
    node_labels: Mapping[str, str]

    @property
    def manifests(self) -> Iterator[Manifest]:
        """Every policy that the case creates at some time."""
        for stage in self.stages:
            for action in stage.actions:
                if action["action"] in ("create_policy", "update_policy"):
                    yield action["policy"]

    @property
    def names_addresses(self) -> bool:
        """Whether its policies select by address: then they say nothing of the pods' other addresses."""
        return any(key in _ADDRESSES for manifest in self.manifests for key in _keys(manifest))

    @property
    def selects_nodes(self) -> bool:
        """Whether policies of it are about nodes: then these have to have the labels that it says."""
        return any(key == "nodeSelector" for manifest in self.manifests for key in _keys(manifest))

    @property
    def population(self) -> str:
        """Equal for cases that need the same namespaces and pods."""
        pods = sorted(
            (str(pod), sorted(pod.labels.items()), pod.ports, pod.service_account) for pod in self.pods
        )
        return json.dumps([self.namespaces, pods], sort_keys=True)


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


def pod(data: Mapping[str, Any], namespace: str, name: str) -> Pod:
    """The pod of a case or of an action that makes one. A port without a name is nothing that is declared."""
    ports = (port for port in data.get("ports") or [] if port.get("name"))
    declared = tuple((port["name"], port["port"], port.get("proto", "TCP")) for port in ports)
    return Pod(namespace, name, data.get("labels") or {}, declared, data.get("serviceAccount") or "")


def _probe(data: Mapping[str, Any], kind: str) -> Probe:
    # The manifests' own kind decides where Kubernetes and Cilium differ.
    expected = data["cilium"] if kind == "cilium" and "cilium" in data else data["expect"]
    return Probe(data["from"], data["to"], data["proto"], data["port"], expected == "allow")


def read_case(data: Mapping[str, Any]) -> Case:
    """A case of a file of cases."""
    policies = [{"action": "create_policy", "policy": policy} for policy in data["policies"]]
    written = [{"actions": policies, "probes": data["probes"]}, *data.get("steps", [])]
    stages = [
        Stage(stage["actions"], [_probe(probe, data["kind"]) for probe in stage["probes"]])
        for stage in written
    ]
    return Case(
        data["id"],
        data["description"],
        {name: space["labels"] for name, space in data["namespaces"].items()},
        [pod(each, each["ns"], each["name"]) for each in data["pods"]],
        stages,
        data.get("nodeLabels") or {},
    )


def _own_case(data: Mapping[str, Any], file: Mapping[str, Any]) -> Case:
    """A case of our own file, which is written more briefly."""
    whole = {"kind": "cilium", "namespaces": file["namespaces"], "pods": file["pods"], **data}
    stages = [whole, *whole.get("steps", [])]
    for stage in stages:
        stage["probes"] = [probe for text in stage["probes"] for probe in _own_probes(text)]
        policies = [
            *stage.get("policies", []),
            *(a["policy"] for a in stage.get("actions", []) if "policy" in a),
        ]
        for policy in policies:
            policy.setdefault("apiVersion", _API_VERSIONS.get(policy["kind"], "cilium.io/v2"))
    return read_case(whole)


def _own_probes(text: str) -> Iterator[dict[str, Any]]:
    read = _OWN_PROBE.fullmatch(text)
    assert read is not None, text
    sources, target, port, protocol, expect = read.groups()
    for source in sources.split(","):
        yield {"from": source.strip(), "to": target, "port": int(port), "proto": protocol, "expect": expect}


@cache
def published() -> tuple[Case, ...]:
    """The published cases."""
    return tuple(read_case(data) for data in json.loads(FILE.read_text(encoding="utf-8")))


@cache
def own() -> tuple[Case, ...]:
    """Our own cases."""
    file = yaml.safe_load(OWN_FILE.read_text(encoding="utf-8"))
    return tuple(_own_case(data, file) for data in file["cases"])


def in_order(cases: Iterable[Case]) -> list[Case]:
    """Cases, those that can share nodes and pods next to each other."""
    found = list(cases)
    first: dict[str, int] = {}
    for number, case in enumerate(found):
        first.setdefault(case.population, number)
    return sorted(found, key=lambda case: (str(lab_labels(case)), first[case.population]))


def lab_labels(case: Case) -> Mapping[str, str]:
    """Labels that the nodes of a case's lab have to have; none where no policy looks at them."""
    return dict(case.node_labels) if case.selects_nodes else {}
