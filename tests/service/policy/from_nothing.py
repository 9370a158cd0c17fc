# SPDX-License-Identifier: Apache-2.0
"""What nodes ought to have, computed by `resolve` from what the services list, without any history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc

from services.policy.convert import entry_message
from services.policy.groups import bind
from services.policy.manifest import CIDR_GROUP, load_stored_manifest
from services.policy.prefixes import PrefixUse, peer_prefixes
from services.policy.resolve import BoundPolicy, resolve
from services.policy.rules import CidrPeer, NamedPort
from services.policy.selector import RESERVED, Labels
from tests.service.policy.loader import Key, Prefix, Value, entry_key, entry_value

# Those that have no prefix: 9 and 10 are identities of prefixes.
_RESERVED_LAST = 8


@dataclass(frozen=True)
class World:
    """All policies with their groups, all identities, and the prefixes that policies name."""

    bound: tuple[BoundPolicy, ...]
    identities: Mapping[int, Labels]
    prefixes: Mapping[int, PrefixUse]

    def told_prefixes(self) -> dict[str, Prefix]:
        """The prefixes as a node keeps them."""
        return {use.cidr: (number, use.by_identity, use.by_address) for number, use in self.prefixes.items()}

    def entries(
        self,
        identity: int,
        ports: Iterable[NamedPort] = (),
        ports_of: Mapping[int, frozenset[NamedPort]] | None = None,
    ) -> dict[Key, Value]:
        """The entries of a subject as a node keeps them."""
        found = resolve(
            self.bound, self.identities, self.identities[identity], ports, ports_of, self.prefixes
        )
        messages = [entry_message(key, value) for key, value in found.entries.items()]
        return {entry_key(message): entry_value(message) for message in messages}


async def world(
    policies: policy_pb2_grpc.PolicyServiceAsyncStub, identities: identity_pb2_grpc.IdentityServiceAsyncStub
) -> World:
    """As the services list it now."""
    bound, groups = [], {}
    for policy in await every_policy(policies):
        manifest = load_stored_manifest(policy.manifest)
        if policy.key.kind == CIDR_GROUP:
            groups[policy.key.name] = manifest.group or ()
        else:
            bound.append(BoundPolicy(manifest.policy, {rule.path: rule.cookie for rule in policy.rules}))
    bound = [BoundPolicy(bind(each.policy, groups), each.cookies) for each in bound]
    uses: dict[str, PrefixUse] = {}
    for each in bound:
        for rule in each.policy.rules():
            for peer in (peer for peer in rule.peers if isinstance(peer, CidrPeer)):
                for cidr in peer_prefixes(peer.cidr, peer.excepts):
                    held = uses.get(cidr, PrefixUse(cidr))
                    uses[cidr] = PrefixUse(
                        cidr, held.by_identity or not peer.by_address, held.by_address or peer.by_address
                    )
    numbers: dict[int, PrefixUse] = {}
    if uses:
        answer = await identities.ResolvePrefixes(identity_pb2.ResolvePrefixesRequest(prefixes=uses))
        numbers = {found.id: use for found, use in zip(answer.identities, uses.values(), strict=True)}
    return World(tuple(bound), await _identities(identities), numbers)


async def every_policy(policies: policy_pb2_grpc.PolicyServiceAsyncStub) -> list[pb.Policy]:
    found: list[pb.Policy] = []
    token = ""
    while True:
        page = await policies.ListPolicies(pb.ListPoliciesRequest(page_size=1000, page_token=token))
        found += page.policies
        token = page.next_page_token
        if not token:
            return found


async def _identities(identities: identity_pb2_grpc.IdentityServiceAsyncStub) -> dict[int, Labels]:
    found: dict[int, Labels] = {}
    token = ""
    while True:
        page = await identities.ListIdentities(
            identity_pb2.ListIdentitiesRequest(include_reserved=True, page_size=1000, page_token=token)
        )
        for identity in page.identities:
            if identity.id <= _RESERVED_LAST or 256 <= identity.id <= 65535:
                found[identity.id] = Labels(
                    [f"{RESERVED}:{identity.name}"] if identity.name else identity.labels
                )
        token = page.next_page_token
        if not token:
            return found
