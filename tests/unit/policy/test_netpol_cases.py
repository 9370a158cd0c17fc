# SPDX-License-Identifier: Apache-2.0
"""Every published network-policy case, as far as its manifests are supported, through parser, engine and
verdict.

Which cases are not supported yet is computed from the fields that their manifests use, never from their
names; for those the refusal is what is tested.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.chassis.labels import pod_labels
from services.policy.engine import (
    Engine,
    IdentityDelete,
    IdentityPut,
    PolicyDelete,
    PolicyPut,
    PortsPut,
    Subject,
    SubjectAdd,
    SubjectRemove,
)
from services.policy.entries import SubjectPolicy, judge
from services.policy.manifest import ManifestError, parse_manifests
from services.policy.resolve import BoundPolicy, resolve
from services.policy.rules import Direction, NamedPort, PolicyRef, Protocol
from services.policy.selector import Labels

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "conformance" / "netpol_cases.json").read_text(encoding="utf-8")
)
UNSUPPORTED_FIELDS = {
    "ipBlock",
    "toCIDR",
    "toCIDRSet",
    "fromCIDR",
    "fromCIDRSet",
    "icmps",
    "toFQDNs",
    "toServices",
    "rules",
}
RESERVED = {"@host": 1, "@remote-node": 6, "@health": 4}
WORLD = 2
SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"


def manifests_of(case: dict[str, Any]) -> list[dict[str, Any]]:
    found = list(case["policies"])
    for step in case.get("steps", []):
        found.extend(action["policy"] for action in step["actions"] if "policy" in action)
    return found


def unsupported_fields(value: object, path: str = "") -> Iterator[str]:
    """Paths of the fields that are not supported yet."""
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{path}.{key}" if path else key
            if key in UNSUPPORTED_FIELDS:
                yield here
            else:
                yield from unsupported_fields(item, here)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from unsupported_fields(item, f"{path}[{index}]")


SUPPORTED = [c for c in CASES if not any(list(unsupported_fields(m)) for m in manifests_of(c))]
REFUSED = [m for c in CASES for m in manifests_of(c) if list(unsupported_fields(m))]


@dataclass
class Pod:
    labels: dict[str, str]
    ports: tuple[NamedPort, ...]
    subject: Subject


@dataclass
class Cluster:
    """The pods of a case on one engine, with identities handed out as the identity service would."""

    engine: Engine = field(default_factory=Engine)
    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)
    pods: dict[tuple[str, str], Pod] = field(default_factory=dict)
    numbers: dict[Labels, int] = field(default_factory=dict)
    policies: dict[PolicyRef, BoundPolicy] = field(default_factory=dict)
    last_cookie: int = 0

    def __post_init__(self) -> None:
        names = ("host", "world", "unmanaged", "health", "init", "remote-node", "kube-apiserver", "ingress")
        for number, name in enumerate(names, 1):
            self.engine.apply([IdentityPut(number, Labels([f"reserved:{name}"]))])

    def identity(self, namespace: str, labels: dict[str, str]) -> int:
        found = Labels(pod_labels(namespace, labels, self.namespaces[namespace]))
        if found not in self.numbers:
            self.numbers[found] = 256 + len(self.numbers)
            self.engine.apply([IdentityPut(self.numbers[found], found)])
        return self.numbers[found]

    def put_pod(self, namespace: str, name: str, labels: dict[str, str], ports: list[dict[str, Any]]) -> None:
        declared = tuple(
            sorted(
                NamedPort(port["name"], Protocol[port["proto"]], port["port"])
                for port in ports
                if port.get("name")
            )
        )
        self._place((namespace, name), labels, declared)

    def _place(self, key: tuple[str, str], labels: dict[str, str], ports: tuple[NamedPort, ...]) -> None:
        subject = Subject(self.identity(key[0], labels), ports)
        old = self.pods.pop(key, None)
        self.pods[key] = Pod(labels, ports, subject)
        self.engine.apply([SubjectAdd(subject)])
        self._declare(subject.identity)
        if old is not None and all(pod.subject != old.subject for pod in self.pods.values()):
            self.engine.apply([SubjectRemove(old.subject)])
            self._declare(old.subject.identity)

    def _declare(self, number: int) -> None:
        pods = [pod for pod in self.pods.values() if pod.subject.identity == number]
        self.engine.apply([PortsPut(number, frozenset(port for pod in pods for port in pod.ports))])

    def put_policy(self, manifest: dict[str, Any]) -> None:
        (parsed,) = parse_manifests(json.dumps(manifest))
        cookies = {}
        for rule in parsed.policy.rules():
            self.last_cookie += 1
            cookies[rule.path] = self.last_cookie
        bound = BoundPolicy(parsed.policy, cookies)
        self.policies[bound.ref] = bound
        self.engine.apply([PolicyPut(bound)])

    def do(self, action: dict[str, Any]) -> None:
        match action["action"]:
            case "create_policy" | "update_policy":
                self.put_policy(action["policy"])
            case "delete_policy":
                for ref in list(self.policies):
                    if (ref.namespace, ref.name) == (action["namespace"], action["name"]):
                        self.engine.apply([PolicyDelete(ref)])
                        del self.policies[ref]
            case "create_namespace" | "set_namespace_labels":
                self.namespaces[action["namespace"]] = action["labels"]
                for key, pod in list(self.pods.items()):
                    if key[0] == action["namespace"]:
                        self._place(key, pod.labels, pod.ports)
            case "create_pod":
                self.put_pod(action["namespace"], action["pod"], action["labels"], action.get("ports", []))
            case "set_pod_labels":
                key = (action["namespace"], action["pod"])
                self._place(key, action["labels"], self.pods[key].ports)
            case "delete_pod":
                old = self.pods.pop((action["namespace"], action["pod"]))
                if all(pod.subject != old.subject for pod in self.pods.values()):
                    self.engine.apply([SubjectRemove(old.subject)])
                self._declare(old.subject.identity)
            case other:
                raise AssertionError(f"unknown action {other}")

    def end(self, name: str) -> tuple[int, Pod | None]:
        if name.startswith("@"):
            return RESERVED[name], None
        if "/" not in name:
            return WORLD, None
        namespace, _, pod = name.partition("/")
        found = self.pods[(namespace, pod)]
        return found.subject.identity, found

    def policy(self, pod: Pod) -> SubjectPolicy:
        """What the engine says; it must be what a computation from nothing says."""
        state = self.engine.state(pod.subject)
        assert state is not None
        identities = {n: labels for n in self.engine.identities() if (labels := self.engine.labels(n))}
        fresh = resolve(
            self.policies.values(),
            identities,
            identities[pod.subject.identity],
            pod.ports,
            {n: ports for n in identities if (ports := self.engine.ports_of(n))},
        )
        assert state == fresh
        return state

    def verdict(self, probe: dict[str, Any], cache: dict[int, SubjectPolicy]) -> bool:
        if probe["from"] == probe["to"]:
            return True
        sender, sending = self.end(probe["from"])
        receiver, receiving = self.end(probe["to"])
        protocol, port = Protocol[probe["proto"]], probe["port"]
        for pod in (sending, receiving):
            if pod is not None and id(pod) not in cache:
                cache[id(pod)] = self.policy(pod)
        egress = (
            sending is None or judge(cache[id(sending)], Direction.EGRESS, receiver, protocol, port).allowed
        )
        # The datapath lets the node reach its own pods.
        ingress = (
            receiving is None
            or sender == RESERVED["@host"]
            or judge(cache[id(receiving)], Direction.INGRESS, sender, protocol, port).allowed
        )
        return egress and ingress


def run_probes(cluster: Cluster, probes: list[dict[str, Any]], where: str) -> list[str]:
    cache: dict[int, SubjectPolicy] = {}
    return [
        f"{where}: {p['from']} -> {p['to']} {p['proto']}/{p['port']}: expected {p['expect']}"
        for p in probes
        if cluster.verdict(p, cache) != (p["expect"] == "allow")
    ]


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case["id"])
def test_published_case_gives_the_published_verdicts(case: dict[str, Any]) -> None:
    cluster = Cluster()
    for name, namespace in case["namespaces"].items():
        cluster.namespaces[name] = namespace["labels"]
    for pod in case["pods"]:
        labels = dict(pod["labels"])
        if pod.get("serviceAccount"):
            labels[SERVICE_ACCOUNT] = pod["serviceAccount"]
        cluster.put_pod(pod["ns"], pod["name"], labels, pod["ports"])
    for manifest in case["policies"]:
        cluster.put_policy(manifest)
    wrong = run_probes(cluster, case["probes"], "at first")
    for number, step in enumerate(case.get("steps", []), 1):
        for action in step["actions"]:
            cluster.do(action)
        wrong += run_probes(cluster, step["probes"], f"after step {number}")
    assert wrong == []


@pytest.mark.parametrize("manifest", REFUSED, ids=lambda m: m["metadata"]["name"])
def test_manifest_with_an_unsupported_field_is_refused_by_its_path(manifest: dict[str, Any]) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifests(json.dumps(manifest))
    named = {violation.field for violation in caught.value.violations}
    assert named == set(unsupported_fields(manifest))
    assert caught.value.unsupported_only


def test_most_cases_are_supported() -> None:
    """A guard against an empty parametrization: 90 cases, of which 10 need CIDRs or ICMP rules."""
    assert len(CASES) == 90
    assert {case["id"] for case in CASES} - {case["id"] for case in SUPPORTED} == {
        case["id"]
        for case in CASES
        if any(word in json.dumps(manifests_of(case)) for word in ('"ipBlock"', '"toCIDR', '"icmps"'))
    }
    assert len(SUPPORTED) >= 80


def test_unused_identity_leaves_no_trace() -> None:
    cluster = Cluster(namespaces={"shop": {}})
    cluster.put_pod("shop", "web", {"app": "web"}, [])
    cluster.put_policy(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "same-namespace", "namespace": "shop"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]},
        }
    )
    pod = cluster.pods[("shop", "web")]
    before = cluster.policy(pod)
    labels = Labels(pod_labels("shop", {"app": "guest"}, {}))
    (change,) = cluster.engine.apply([IdentityPut(900, labels)])
    assert [key.identity for key, _ in change.upserts] == [900]
    assert change.deletes == ()
    (change,) = cluster.engine.apply([IdentityDelete(900)])
    assert [key.identity for key in change.deletes] == [900]
    assert cluster.policy(pod) == before
