"""Clusters and policies for the benchmarks of the policy engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from services.policy.engine import Engine, IdentityPut, PolicyPut, Subject, SubjectAdd
from services.policy.resolve import BoundPolicy
from services.policy.rules import Direction, Policy, PolicyRef, PortRange, Protocol, Rule, RuleSpec
from services.policy.selector import (
    ANY_SOURCE,
    K8S,
    NAMESPACE_KEY,
    Labels,
    Operator,
    Requirement,
    Selector,
    equals,
)

FIRST_IDENTITY = 256
# A selector picks one of so many values of a label: 1 % of the identities.
VALUES = 100
_PORTS = 100
_FIRST_PORT = 8000


@dataclass(frozen=True)
class Cluster:
    """Identities with `keys` labels of 100 values each at random, and what real ones have besides.

    Only the first `selectable` of them have labels that the policies below ask for.
    """

    identities: int
    keys: int
    selectable: int | None = None

    def labels(self, number: int) -> Labels:
        chance = random.Random(number)
        selectable = self.selectable is None or number < self.selectable
        mark = "" if selectable else f"other-{number // 1000}-"
        namespace = number % 500
        return Labels(
            [
                f"k8s:app=app-{number}",
                f"k8s:{NAMESPACE_KEY}=ns-{namespace}",
                f"k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=ns-{namespace}",
                f"k8s:io.cilium.k8s.policy.serviceaccount=sa-{number % 5000}",
                *(f"k8s:key-{key}={mark}{chance.randrange(VALUES)}" for key in range(self.keys)),
            ]
        )

    def puts(self) -> Iterator[IdentityPut]:
        for number in range(self.identities):
            yield IdentityPut(FIRST_IDENTITY + number, self.labels(number))


def policy(number: int, subject: Selector, *, keys: int = 0, port: int | None = None) -> BoundPolicy:
    """A policy of one rule: from who has one value of one label, to one port. No two of them are alike.

    `keys`: there are no more labels than these, and a peer leaves out a name of its own besides.
    """
    key, value = divmod(number % (keys * VALUES) if keys else number, VALUES)
    required = [equals(ANY_SOURCE, f"key-{key}", str(value))]
    if keys:
        required.append(Requirement(K8S, "app", Operator.NOT_IN, (f"app-{number}",)))
    where = _FIRST_PORT + number % _PORTS if port is None else port
    ports = (PortRange(Protocol.TCP, where, where),)
    rule = Rule(Direction.INGRESS, False, (Selector.of(required),), ports, "spec.ingress[0]")
    spec = RuleSpec(subject, (rule,), (True, False), "spec")
    ref = PolicyRef("CiliumNetworkPolicy", "bench", f"policy-{number}")
    return BoundPolicy(Policy(ref, (spec,)), {rule.path: number + 1})


# The first identity, which all rules are about.
SUBJECT = Subject(FIRST_IDENTITY)
ONE_SUBJECT = Selector.of([equals(K8S, "app", "app-0")])


def loaded(cluster: Cluster, rules: int) -> Engine:
    """An engine with these identities and so many rules on one subject, which is watched."""
    engine = Engine()
    engine.apply(cluster.puts())
    engine.apply([PolicyPut(policy(number, ONE_SUBJECT)) for number in range(rules)])
    engine.apply([SubjectAdd(SUBJECT)])
    return engine


def in_namespace(number: int) -> Selector:
    """A subject for policies that are spread over the cluster."""
    return Selector.of([equals(K8S, NAMESPACE_KEY, f"ns-{number % 500}")])
