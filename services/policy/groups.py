# SPDX-License-Identifier: Apache-2.0
"""CIDR groups in policies: what a policy says once the groups that it names are filled in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from services.policy.prefixes import contains, peer_prefixes
from services.policy.rules import CidrGroupPeer, CidrPeer, Peer, Policy, RuleSpec

Members = tuple[str, ...]


def bind(policy: Policy, groups: Mapping[str, Members]) -> Policy:
    """The policy with the CIDRs of its groups in their place; a group that does not exist matches nobody."""
    if not any(isinstance(peer, CidrGroupPeer) for peer in _peers(policy)):
        return policy
    return replace(policy, specs=tuple(_bind_spec(spec, groups) for spec in policy.specs))


def groups_named(policy: Policy) -> dict[str, tuple[str, ...]]:
    """The groups that the policy names, each with the paths of the rules that do."""
    found: dict[str, dict[str, None]] = {}
    for rule in policy.rules():
        for peer in rule.peers:
            if isinstance(peer, CidrGroupPeer):
                found.setdefault(peer.name, {})[rule.path] = None
    return {name: tuple(paths) for name, paths in found.items()}


def literal_prefixes(policy: Policy, group: Members | None = None) -> dict[str, None]:
    """The prefixes that stand in a document itself, each once: a policy's, or the members of a group."""
    found = dict.fromkeys(group or ())
    for peer in _peers(policy):
        if isinstance(peer, CidrPeer):
            found.update(dict.fromkeys(peer_prefixes(peer.cidr, peer.excepts)))
        elif isinstance(peer, CidrGroupPeer):
            found.update(dict.fromkeys(peer.excepts))
    return found


def prefix_uses(policy: Policy) -> Iterator[tuple[str, bool]]:
    """(prefix, by address) for each use of a prefix in a bound policy, each once."""
    seen: set[tuple[str, bool]] = set()
    for peer in _peers(policy):
        if isinstance(peer, CidrPeer):
            for cidr in peer_prefixes(peer.cidr, peer.excepts):
                if (cidr, peer.by_address) not in seen:
                    seen.add((cidr, peer.by_address))
                    yield cidr, peer.by_address


def _peers(policy: Policy) -> Iterator[Peer]:
    for rule in policy.rules():
        yield from rule.peers


def _bind_spec(spec: RuleSpec, groups: Mapping[str, Members]) -> RuleSpec:
    rules = tuple(replace(rule, peers=tuple(_bind_peers(rule.peers, groups))) for rule in spec.rules)
    return replace(spec, rules=rules)


def _bind_peers(peers: Iterable[Peer], groups: Mapping[str, Members]) -> Iterator[Peer]:
    for peer in peers:
        if not isinstance(peer, CidrGroupPeer):
            yield peer
            continue
        for member in groups.get(peer.name, ()):
            # An exception may be wider than a member, and leaves nothing of it then.
            excepts = (cidr for cidr in peer.excepts if contains(member, cidr) or contains(cidr, member))
            yield CidrPeer(member, tuple(excepts))
