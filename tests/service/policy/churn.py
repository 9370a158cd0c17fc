# SPDX-License-Identifier: Apache-2.0
"""Clients that change policies, CIDR groups and identities at random, and remember what they are promised."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc

from services.chassis.labels import pod_labels
from services.policy.manifest import parse_manifests
from services.policy.rules import PolicyRef
from tests.service.policy.from_nothing import every_policy
from tests.service.policy.manifests import allow_client, cidr_group, ip_block, network_policy, to_cidrs

APPS = ("web", "client", "db")
_CIDRS = (
    "10.0.0.0/8",
    "10.96.0.0/12",
    "10.96.7.0/24",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "198.18.0.0/15",
    "0.0.0.0/0",
    "2001:db8::/32",
    "2001:db8:7::/48",
)


_Texts = dict[PolicyRef, str | None]


def documents(random: random.Random, namespace: str, worker: int) -> list[str]:
    """One or two documents that only this worker writes."""
    name = f"w{worker}-{random.randrange(4)}"
    group = f"{namespace}-g{worker}"
    cidr = random.choice(_CIDRS)
    within = [each for each in _CIDRS if each.startswith("10.96")] if cidr == "10.0.0.0/8" else []
    choices: list[Callable[[], list[str]]] = [
        lambda: [to_cidrs(namespace, name, {"toCIDR": [cidr]}, app=random.choice(APPS))],
        lambda: [
            to_cidrs(
                namespace,
                name,
                {"toCIDRSet": [{"cidr": cidr, "except": within[:1]}]},
                {"toEntities": [random.choice(("world", "world-ipv4", "cluster"))]},
            )
        ],
        lambda: [
            to_cidrs(namespace, name, {"toCIDRSet": [{"cidrGroupRef": group}]}, app=random.choice(APPS))
        ],
        lambda: [ip_block(namespace, name, cidr, *within)],
        lambda: [cidr_group(group, *random.sample(_CIDRS, random.randrange(1, 4)))],
        lambda: [
            cidr_group(group, *random.sample(_CIDRS, 2)),
            to_cidrs(namespace, name, {"toCIDRSet": [{"cidrGroupRef": group}]}),
        ],
        lambda: [
            network_policy(namespace, name, {"podSelector": {}, "egress": [{"ports": [{"port": "http"}]}]})
        ],
        lambda: [allow_client(namespace, port=random.randrange(1, 9))] if worker == 0 else [],
    ]
    return random.choice(choices)() or [ip_block(namespace, name, cidr)]


@dataclass
class Promises:
    """What each document says, as far as calls were answered; None for its absence. `open` are the calls that
    were not: what their documents said before, and what they would say. Each document is in one at most.

    `enough` is set when `target` calls have been answered.
    """

    says: dict[PolicyRef, str | None] = field(default_factory=dict)
    open: list[tuple[_Texts, _Texts]] = field(default_factory=list)
    kept: int = 0
    target: int = 0
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    def answered(self, wanted: _Texts) -> None:
        self.kept += 1
        self.says.update(wanted)
        if self.kept >= self.target:
            self.enough.set()

    def broken(self, wanted: _Texts) -> None:
        self.open.append(({ref: self.says.get(ref) for ref in wanted}, wanted))

    async def check(self, policies: policy_pb2_grpc.PolicyServiceAsyncStub) -> None:
        """Everything that was promised is there; from now on what is there counts."""
        there = {
            PolicyRef(policy.key.kind, policy.key.namespace, policy.key.name): policy.manifest
            for policy in await every_policy(policies)
        }
        for before, after in self.open:
            found = {ref: there.get(ref) for ref in after}
            assert found in (before, after), "a call without an answer was carried out by half"
            self.says.update(found)
        self.open = []
        assert {ref: there.get(ref) for ref in self.says} == self.says


async def churn(
    worker: int,
    seed: int,
    namespace: str,
    policies: policy_pb2_grpc.PolicyServiceAsyncStub,
    identities: identity_pb2_grpc.IdentityServiceAsyncStub,
    promises: Promises,
    rounds: int | None = None,
) -> None:
    """Change things until a call fails, or for so many rounds."""
    chance = random.Random(f"{seed}-{worker}")
    done = 0
    while rounds is None or done < rounds:
        done += 1
        if chance.random() < 0.15:
            labels = pod_labels(namespace, {"app": chance.choice(APPS), "v": str(chance.randrange(50))}, {})
            await identities.Resolve(identity_pb2.ResolveRequest(labels=labels))
            continue
        texts = documents(chance, namespace, worker)
        manifests = [parse_manifests(text)[0] for text in texts]
        deletes = chance.random() < 0.3
        wanted = {each.policy.ref: None if deletes else each.text for each in manifests}
        try:
            joined = "\n---\n".join(texts)
            if deletes:
                await policies.DeletePolicies(pb.DeletePoliciesRequest(manifests=joined))
            else:
                await policies.ApplyPolicies(pb.ApplyPoliciesRequest(manifests=joined))
        except grpc.aio.AioRpcError:
            if rounds is not None:
                raise
            promises.broken(wanted)
            return
        promises.answered(wanted)
        # The others' turn.
        await asyncio.sleep(0)
