# SPDX-License-Identifier: Apache-2.0
"""Random clusters and changes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.policy_model.cases import reserved_addresses
from tests.policy_model.cluster import Cluster, DeclaredPort, Pod
from tests.policy_model.manifests import (
    address_books,
    admin_policies,
    cidr_groups,
    cilium_policies,
    contests,
    network_policies,
    own_policies,
    port_books,
)
from tests.policy_model.vocabulary import (
    ACCOUNTS,
    LABELS,
    NAMESPACE_LABELS,
    NAMESPACES,
    NODE_LABELS,
    PORT_NAMES,
    SLOTS,
    Document,
    chosen,
    maybe,
    priorities,
)


@dataclass(frozen=True)
class Step:
    """A change. What `value` is depends on `what`: see `steps`."""

    what: str
    name: str = ""
    value: Any = None


# What worlds are made of: kinds that have much to do with each other meet more often than all of them do.
KINDS: dict[str, st.SearchStrategy[Document]] = {
    "kubernetes": st.one_of(network_policies(), network_policies(), admin_policies()),
    "cilium": st.one_of(cilium_policies(), cilium_policies(), cidr_groups()),
    "administrators": st.one_of(admin_policies(), own_policies()),
    "contests": contests(),
    "addresses": address_books(),
    "port names": port_books(),
    "all": st.one_of(network_policies(), admin_policies(), cilium_policies(), own_policies(), cidr_groups()),
}


def key_of(document: Document) -> tuple[str, str, str]:
    """(kind, namespace, name)."""
    head = document["metadata"]
    return document["kind"], head.get("namespace", ""), head["name"]


def reordered(document: Document, priority: int | None) -> Document:
    """A policy of a tier with an order, with this priority or else with its rules turned round."""
    spec = dict(document["spec"])
    if priority is None:
        for key in ("ingress", "egress", "rules"):
            if key in spec:
                spec[key] = list(reversed(spec[key]))
    elif document["kind"] != "BaselineAdminNetworkPolicy":
        spec["priority"] = priority
    return {**document, "spec": spec}


def has_order(document: Document) -> bool:
    spec = document.get("spec", {})
    return "subject" in spec or spec.get("tier", "normal") != "normal"


def unlike(bundle: Sequence[Document]) -> list[Document]:
    """The documents with each name once: a bundle says one thing about a policy."""
    return list({key_of(document): document for document in bundle}.values())


def bundles(documents: st.SearchStrategy[Document]) -> st.SearchStrategy[list[Document]]:
    return st.lists(documents, min_size=1, max_size=4).map(unlike)


# -- clusters and changes


@st.composite
def pods(draw: st.DrawFn, slot: str) -> Pod:
    namespace, _, name = slot.partition("/")
    ports = [
        DeclaredPort(draw(st.sampled_from(PORT_NAMES)), draw(st.sampled_from(("TCP", "UDP"))), number)
        for number in draw(st.sampled_from(((80,), (80, 53), (82,), ())))
    ]
    return Pod(
        namespace,
        name,
        draw(chosen(LABELS)),
        tuple(sorted({(port.name, port.protocol): port for port in ports}.values())),
        SLOTS[slot],
        draw(st.sampled_from(ACCOUNTS)),
    )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    cluster = Cluster(
        namespaces={name: draw(chosen(NAMESPACE_LABELS)) for name in NAMESPACES},
        node_labels=draw(chosen(NODE_LABELS)),
        addresses=reserved_addresses(),
    )
    for slot in SLOTS:
        if not maybe(draw, 4):
            cluster.put(draw(pods(slot)))
    return cluster


slots = st.sampled_from(sorted(SLOTS))


# The change that a sort of worlds is about.
OFTEN = {"contests": "reorder", "port names": "pod"}


def steps(documents: st.SearchStrategy[Document], often: str = "apply") -> st.SearchStrategy[Step]:
    """Changes; every second one is the one that comes `often`."""
    bundle = bundles(documents)
    kinds: dict[str, st.SearchStrategy[Step]] = {
        # Documents to apply together.
        "apply": st.builds(Step, st.just("apply"), value=bundle),
        # A policy that there is, by its place among those with an order, with its rules in another one: its
        # priority, or None to turn them round.
        "reorder": st.builds(
            Step, st.just("reorder"), value=st.tuples(st.integers(0, 3), priorities | st.none())
        ),
        # A policy that there is, by its place in the list, to be deleted.
        "delete": st.builds(Step, st.just("delete"), value=st.integers(0, 9)),
        # A pod as it comes, or as it is from now on.
        "pod": slots.flatmap(lambda slot: st.builds(Step, st.just("pod"), st.just(slot), pods(slot))),
        "pod gone": st.builds(Step, st.just("pod gone"), slots),
        "namespace": st.builds(
            Step, st.just("namespace"), st.sampled_from(NAMESPACES), chosen(NAMESPACE_LABELS)
        ),
        # Identities that nobody has any more go.
        "forget": st.builds(Step, st.just("forget")),
    }
    names = st.sampled_from([*kinds, *[often] * len(kinds)])
    return names.flatmap(lambda name: kinds[name])
