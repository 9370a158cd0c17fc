# SPDX-License-Identifier: Apache-2.0
"""Every example in docs/policy-semantics.md, by the engine and by the model."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

import pytest
import yaml

from services.policy.entries import port_prefixes
from services.policy.manifest import ManifestError, parse_manifests
from services.policy.rules import PolicyRef
from tests.policy_model.cases import reserved_addresses
from tests.policy_model.cluster import Cluster, Connection, DeclaredPort, Pod
from tests.policy_model.generators import key_of
from tests.policy_model.harness import RESERVED, WORLD, Deployment
from tests.policy_model.model import Model, Verdict
from tests.policy_model.semantics import (
    Block,
    Deleted,
    Labelled,
    Mode,
    Part,
    Paths,
    Table,
    labels_of,
    sections,
)

SECTIONS = sections()
PODS = ("pod", "labels", "address", "ports it declares", "service account")
VERDICTS = ("from", "to", "traffic", "verdict")
NUMBERS = ("who", "identity", "prefix by address")
RANGES = ("ports", "prefixes")
EXAMPLES = {
    title: found
    for title, found in SECTIONS.items()
    if any(isinstance(part, Block) and part.how != "refused" for part in found)
}


def the_cluster() -> Cluster:
    """The one that the page begins with."""
    cluster = Cluster(
        {"shop": {"team": "red"}, "bank": {"team": "blue"}},
        node_labels={"role": "edge"},
        addresses=reserved_addresses(),
    )
    (table,) = [
        part
        for found in SECTIONS.values()
        for part in found
        if isinstance(part, Table) and part.header == PODS
    ]
    for name, labels, address, ports, account in table.rows:
        namespace, _, own = name.partition("/")
        v6 = f"fd40::{ip_address(address).packed[-2]}:{ip_address(address).packed[-1]}"
        declared = [_declared(text) for text in ports.split(",") if text]
        cluster.put(Pod(namespace, own, labels_of(labels), tuple(sorted(declared)), (address, v6), account))
    return cluster


def _declared(text: str) -> DeclaredPort:
    name, _, port = text.strip().partition("=")
    number, _, protocol = port.partition("/")
    return DeclaredPort(name, protocol, int(number))


class Example:
    """A cluster with what a section has put into force so far."""

    def __init__(self) -> None:
        self.mode = "default"
        self.begin()

    def begin(self) -> None:
        self.cluster = the_cluster()
        self.documents: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.deployment = Deployment(self.cluster)
        self.model = Model(self.cluster)

    def take(self, part: Part) -> list[str]:
        """Do what a part says. Returns what of a table is not so."""
        match part:
            case Block(how="refused") | Paths():
                return []
            case Block(how, text):
                if not how:
                    self.begin()
                self.deployment.apply_text(text)
                self.documents.update({key_of(item): item for item in yaml.safe_load_all(text)})
            case Labelled("pod", name, labels):
                self.cluster.put(replace(self.cluster.pods[name], labels=labels))
                self.deployment.settle_pods()
            case Labelled(_, name, labels):
                self.cluster.namespaces[name] = labels
                self.deployment.settle_pods()
            case Deleted(kind, name):
                namespace, _, own = name.rpartition("/")
                del self.documents[kind, namespace, own]
                self.deployment.apply((), [PolicyRef(kind, namespace, own)])
            case Mode(name):
                self.mode = name
            case Table(header, rows, _) if header == VERDICTS:
                self.model.read(self.documents.values())
                return [problem for row in rows for problem in self.check_verdict(row)]
            case Table(header, rows, _) if header == NUMBERS:
                return [problem for row in rows for problem in self.check_numbers(row)]
            case _:
                pass
        return []

    def check_verdict(self, row: tuple[str, ...]) -> list[str]:
        source, destination, traffic, wanted = row
        port, _, protocol = traffic.partition("/")
        texts = (text for text in (source, destination) if not text.startswith("@") and "/" not in text)
        families = {ip_address(text).version for text in texts}
        families |= {6} if protocol == "ICMPv6" else set()
        connection = Connection(source, destination, protocol, int(port), min(families, default=4))
        opinions = {"engine": self.engine_says(connection)}
        if self.mode == "default":
            opinions["model"] = self.model_says(connection)
        return [
            f"{connection}: the page says {wanted!r}, the {who} {said!r}"
            for who, said in opinions.items()
            if said != wanted
        ]

    def engine_says(self, connection: Connection) -> str:
        found = {}
        for direction, name in (("egress", connection.source), ("ingress", connection.destination)):
            if self.deployment.subject(name) is None or self.mode == "never":
                found[direction] = Verdict(True)
                continue
            state = self.deployment.state(name)
            if self.mode == "always":
                state = replace(state, enforced=(True, True))
            found[direction] = self.deployment.judged(state, connection, direction)
        return in_words(connection, found)

    def model_says(self, connection: Connection) -> str:
        found = {each: self.model.verdict(connection, each) for each in ("egress", "ingress")}
        return in_words(connection, found)

    def check_numbers(self, row: tuple[str, ...]) -> list[str]:
        who, identity, prefix = row
        by_number = {number: cidr for cidr, (number, _, _) in self.deployment.prefixes.known.items()}
        found = self.deployment.peer(who, 6 if ":" in who else 4)
        named = "its own" if self.deployment.subject(who) else by_number.get(found[0], "world")
        if named == "world":
            assert found[0] == WORLD
        said = (named, by_number.get(found[1], "none"))
        return (
            [f"{who}: the page says {(identity, prefix)}, nodes {said}"] if said != (identity, prefix) else []
        )


def in_words(connection: Connection, found: dict[str, Verdict]) -> str:
    if connection.source == connection.destination:
        return "allowed"
    for direction, verdict in found.items():
        if not verdict.allowed:
            return f"denied at {direction}"
    audited = [direction for direction, verdict in found.items() if verdict.audited]
    return f"allowed, audited at {' and '.join(audited)}" if audited else "allowed"


@pytest.mark.parametrize("title", EXAMPLES)
def test_example_has_the_verdicts_that_the_page_says(title: str) -> None:
    example = Example()
    assert [problem for part in EXAMPLES[title] for problem in example.take(part)] == []


def test_manifests_that_the_page_calls_refused_are_refused_for_these_paths() -> None:
    found = SECTIONS["What is refused"]
    refused = [
        (block, said)
        for block, said in pairwise(found)
        if isinstance(block, Block) and isinstance(said, Paths)
    ]
    assert len(refused) == 2
    for block, said in refused:
        with pytest.raises(ManifestError) as caught:
            parse_manifests(block.text)
        assert {violation.field for violation in caught.value.violations} == set(said.paths)
        assert caught.value.unsupported_only


def test_ranges_are_the_prefixes_that_the_page_shows() -> None:
    (table,) = [p for p in SECTIONS["Ranges"] if isinstance(p, Table) and p.header == RANGES]
    for ports, wanted in table.rows:
        first, _, last = ports.partition("–")
        found = port_prefixes(int(first), int(last or first))
        assert " ".join(f"{port}/{length}" for port, length in found) == wanted


def test_every_table_of_the_page_is_one_that_is_checked() -> None:
    known = {PODS, VERDICTS, NUMBERS, RANGES, ("entity", "who")}
    assert {p.header for found in SECTIONS.values() for p in found if isinstance(p, Table)} == known
    verdicts = [p for f in EXAMPLES.values() for p in f if isinstance(p, Table) and p.header == VERDICTS]
    assert sum(len(table.rows) for table in verdicts) > 100


def test_entities_of_the_page_are_those_that_manifests_take() -> None:
    (table,) = [p for p in SECTIONS["Entities"] if isinstance(p, Table) and p.header == ("entity", "who")]
    named = {name.strip(" `") for row in table.rows for name in row[0].split(",")}
    assert {name.removeprefix("@") for name in RESERVED} <= named
    policy = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "all"},
        "spec": {"endpointSelector": {}, "egress": [{"toEntities": sorted(named)}]},
    }
    assert parse_manifests(yaml.safe_dump(policy))
    policy["spec"] = {"endpointSelector": {}, "egress": [{"toEntities": ["nowhere"]}]}
    with pytest.raises(ManifestError) as caught:
        parse_manifests(yaml.safe_dump(policy))
    assert {name for name in named if name in str(caught.value)} == named
