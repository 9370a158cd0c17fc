"""The published cases as data: which there are, and what their actions and probes mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("netpol_cases.json")
HOST, REMOTE_NODE, HEALTH = "@host", "@remote-node", "@health"
# Fields of manifests that name addresses: such policies are about those, not about all that their pods have.
_ADDRESSES = {"ipBlock", "toCIDR", "toCIDRSet", "fromCIDR", "fromCIDRSet", "cidrGroupRef", "networks"}

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


@cache
def cases() -> tuple[Case, ...]:
    """All cases, those that can share nodes and pods next to each other."""
    found = [read_case(data) for data in json.loads(FILE.read_text(encoding="utf-8"))]
    first: dict[str, int] = {}
    for number, case in enumerate(found):
        first.setdefault(case.population, number)
    return tuple(
        sorted(
            found, key=lambda case: (lab_labels(case) != {}, str(lab_labels(case)), first[case.population])
        )
    )


def lab_labels(case: Case) -> Mapping[str, str]:
    """Labels that the nodes of a case's lab have to have; none where no policy looks at them."""
    return dict(case.node_labels) if case.selects_nodes else {}
