# SPDX-License-Identifier: Apache-2.0
"""The policies as they would be after a change that is not made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count

from services.policy.diff_peers import LAST_PREFIX, ROOTS, prefix_uses
from services.policy.groups import bind, groups_named
from services.policy.manifest import CIDR_GROUP
from services.policy.prefixes import PrefixUse
from services.policy.resolve import BoundPolicy
from services.policy.rules import Policy, PolicyRef
from services.policy.stored import StoredPolicy

# Rules that have no number yet get one from here on, which no rule has.
PROVISIONAL = 1 << 31


@dataclass(frozen=True, slots=True)
class Policies:
    """Policies bound to their groups, and the file that each came from."""

    bound: Mapping[PolicyRef, BoundPolicy]
    sources: Mapping[PolicyRef, str]


def present(policies: Mapping[PolicyRef, StoredPolicy]) -> Policies:
    """The policies that are in force."""
    return Policies(
        {ref: stored.bound for ref, stored in policies.items()},
        {ref: stored.source for ref, stored in policies.items() if stored.source},
    )


def changed(
    policies: Mapping[PolicyRef, StoredPolicy],
    groups: Mapping[str, StoredPolicy],
    deletes: Iterable[PolicyRef],
    applies: Iterable[StoredPolicy],
    stated: Callable[[StoredPolicy], Policy],
) -> Policies:
    """The policies after some are deleted and then others applied, groups among them.

    `policies` are bound; `applies` and what `stated` gives are as their manifests have them.
    """
    members = {name: stored.group or () for name, stored in groups.items()}
    found = dict(policies)
    others: dict[PolicyRef, StoredPolicy] = {}
    before = dict(members)
    for ref in deletes:
        if ref.kind == CIDR_GROUP:
            members.pop(ref.name, None)
        else:
            found.pop(ref, None)
    for stored in applies:
        if stored.ref.kind == CIDR_GROUP:
            members[stored.ref.name] = stored.group or ()
        else:
            found[stored.ref] = others[stored.ref] = stored
    numbers = count(PROVISIONAL)
    regrouped = {name for name in {*before, *members} if before.get(name) != members.get(name)}
    bound: dict[PolicyRef, BoundPolicy] = {}
    for ref, stored in found.items():
        if ref in others:
            cookies = {path: cookie or next(numbers) for path, cookie in stored.bound.cookies.items()}
            bound[ref] = BoundPolicy(bind(stored.bound.policy, members), cookies)
        else:
            bound[ref] = stored.bound
            if regrouped and not regrouped.isdisjoint(groups_named(policy := stated(stored))):
                lines = stored.bound.policy.lines
                bound[ref] = BoundPolicy(replace(bind(policy, members), lines=lines), stored.bound.cookies)
    return Policies(bound, {ref: stored.source for ref, stored in found.items() if stored.source})


def number_prefixes(
    policies: Iterable[BoundPolicy], number_of: Callable[[str], int | None]
) -> dict[int, PrefixUse]:
    """The prefixes in use by number; those that have none yet get one that no other has."""
    uses = prefix_uses(policies)
    known = {cidr: ROOTS.get(cidr) or number_of(cidr) for cidr in uses}
    taken = set(known.values())
    spare = (number for number in count(LAST_PREFIX, -1) if number not in taken)
    return {known[cidr] or next(spare): use for cidr, use in uses.items()}
