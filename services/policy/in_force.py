# SPDX-License-Identifier: Apache-2.0
"""The documents in force, and what a change of some of them means for prefixes and policies, step by step.

A policy is bound to the groups that it names. A prefix has a number from the documents that it stands in, and
is in use while bound policies name it; a group that nobody names puts none in force.

Pure: documents in, engine events out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from services.policy.engine_events import PolicyDelete, PolicyPut, PrefixDelete, PrefixPut
from services.policy.groups import bind, groups_named, prefix_uses
from services.policy.manifest import CIDR_GROUP
from services.policy.prefixes import PrefixUse
from services.policy.resolve import BoundPolicy
from services.policy.rules import PolicyRef
from services.policy.stored import Gone, StoredPolicy

# How prefixes were before a change: their numbers, and how they were in use.
_Touched = dict[str, tuple[int | None, PrefixUse | None]]


@dataclass(frozen=True, slots=True)
class Steps:
    """What a change means, in the order in which it has to take effect.

    First the engine learns of prefixes that are new or used in more ways (`known`), so that there are
    entries for them; then they take effect (`begin`: number and use); then policies change; then prefixes are
    out of effect, wholly or in some uses (`cease`: what is left), and the engine forgets them (`forgotten`).
    """

    known: tuple[PrefixPut, ...] = ()
    begin: tuple[tuple[int, PrefixUse], ...] = ()
    policies: tuple[PolicyPut | PolicyDelete, ...] = ()
    cease: tuple[tuple[int, PrefixUse], ...] = ()
    forgotten: tuple[PrefixPut | PrefixDelete, ...] = ()


class InForce:
    """All documents. `policies` are bound to their groups; `groups` are the CIDR groups by name."""

    def __init__(self) -> None:
        self.policies: dict[PolicyRef, StoredPolicy] = {}
        self.groups: dict[str, StoredPolicy] = {}
        self._stated: dict[PolicyRef, BoundPolicy] = {}
        self._naming: dict[str, dict[PolicyRef, None]] = {}
        # How many documents give a prefix its number, and how many policies use it (by identity, by address).
        self._numbers: dict[str, tuple[int, int]] = {}
        self._uses: dict[str, list[int]] = {}
        self._cidrs: dict[int, str] = {}

    @property
    def members(self) -> Mapping[str, tuple[str, ...]]:
        """What each group holds."""
        return {name: stored.group or () for name, stored in self.groups.items()}

    def number_of(self, cidr: str) -> int | None:
        """The number of a prefix that stands in some document."""
        held = self._numbers.get(cidr)
        return held[0] if held is not None else None

    def numbers(self) -> dict[str, int]:
        """The numbers of all prefixes that stand in documents."""
        return {cidr: number for cidr, (number, _) in self._numbers.items()}

    def prefix_of(self, number: int) -> str | None:
        """The prefix that has a number in some document."""
        return self._cidrs.get(number)

    def prefixes(self) -> dict[int, PrefixUse]:
        """Every prefix in use, by number."""
        found = {}
        for cidr in self._uses:
            number, use = self.number_of(cidr), self._use(cidr)
            if number is not None and use is not None:
                found[number] = use
        return found

    def take(self, changes: Iterable[StoredPolicy | Gone]) -> Steps:
        """Take documents over that are new, changed or gone."""
        touched: _Touched = {}
        rebind: dict[PolicyRef, None] = {}
        before: dict[PolicyRef, BoundPolicy | None] = {}
        for change in changes:
            ref = change.ref
            if ref.kind == CIDR_GROUP:
                self._take_group(change, touched)
                for user in self._naming.get(ref.name, ()):
                    self._raise(user, change.revision)
                    rebind[user] = None
                continue
            former = self.policies.pop(ref, None)
            before.setdefault(ref, former.bound if former is not None else None)
            self._drop(ref, former, touched)
            if isinstance(change, StoredPolicy):
                self._add(change, touched)
                rebind[ref] = None
            else:
                rebind.pop(ref, None)
        for ref in rebind:
            stored = self.policies[ref]
            before.setdefault(ref, stored.bound)
            self._rebind(ref, touched)
        return self._steps(touched, before)

    # -- inside

    def _take_group(self, change: StoredPolicy | Gone, touched: _Touched) -> None:
        former = self.groups.pop(change.ref.name, None)
        if isinstance(change, StoredPolicy):
            self.groups[change.ref.name] = change
            self._hold(change, touched)
        if former is not None:
            self._release(former, touched)

    def _add(self, change: StoredPolicy, touched: _Touched) -> None:
        """Known under its own terms; `_rebind` fills its groups in."""
        self._stated[change.ref] = change.bound
        bare = replace(change, bound=BoundPolicy(bind(change.bound.policy, {}), change.bound.cookies))
        self.policies[change.ref] = bare
        self._hold(change, touched)
        self._count(bare.bound, 1, touched)
        for name in groups_named(change.bound.policy):
            self._naming.setdefault(name, {})[change.ref] = None

    def _drop(
        self,
        ref: PolicyRef,
        former: StoredPolicy | None,
        touched: _Touched,
    ) -> None:
        stated = self._stated.pop(ref, None)
        if former is None or stated is None:
            return
        self._count(former.bound, -1, touched)
        self._release(former, touched)
        for name in groups_named(stated.policy):
            self._naming[name].pop(ref, None)
            if not self._naming[name]:
                del self._naming[name]

    def _rebind(self, ref: PolicyRef, touched: _Touched) -> None:
        stored, stated = self.policies[ref], self._stated[ref]
        members = {
            name: self.groups[name].group or () for name in groups_named(stated.policy) if name in self.groups
        }
        policy = bind(stated.policy, members)
        if policy == stored.bound.policy:
            return
        bound = BoundPolicy(policy, stated.cookies)
        self._count(bound, 1, touched)
        self._count(stored.bound, -1, touched)
        self.policies[ref] = replace(stored, bound=bound)

    def _raise(self, ref: PolicyRef, revision: int) -> None:
        stored = self.policies.get(ref)
        if stored is not None and stored.effective_revision < revision:
            self.policies[ref] = replace(stored, effective_revision=revision)

    def _use(self, cidr: str) -> PrefixUse | None:
        counts = self._uses.get(cidr)
        return PrefixUse(cidr, counts[0] > 0, counts[1] > 0) if counts is not None else None

    def _note(self, cidr: str, touched: _Touched) -> None:
        """How it was before the change."""
        if cidr not in touched:
            touched[cidr] = self.number_of(cidr), self._use(cidr)

    def _hold(self, stored: StoredPolicy, touched: _Touched) -> None:
        for cidr, number in stored.prefixes.items():
            self._note(cidr, touched)
            before, holders = self._numbers.get(cidr, (number, 0))
            # All documents get another number in one change; the newest one is right.
            if before != number and self._cidrs.get(before) == cidr:
                del self._cidrs[before]
            self._numbers[cidr] = number, holders + 1
            self._cidrs[number] = cidr

    def _release(self, stored: StoredPolicy, touched: _Touched) -> None:
        for cidr in stored.prefixes:
            self._note(cidr, touched)
            number, holders = self._numbers[cidr]
            if holders > 1:
                self._numbers[cidr] = number, holders - 1
            else:
                del self._numbers[cidr]
                if self._cidrs.get(number) == cidr:
                    del self._cidrs[number]

    def _count(self, bound: BoundPolicy, step: int, touched: _Touched) -> None:
        for cidr, by_address in prefix_uses(bound.policy):
            self._note(cidr, touched)
            counts = self._uses.setdefault(cidr, [0, 0])
            counts[by_address] += step
            if counts == [0, 0]:
                del self._uses[cidr]

    def _steps(
        self,
        touched: _Touched,
        before: Mapping[PolicyRef, BoundPolicy | None],
    ) -> Steps:
        begin: dict[int, PrefixUse] = {}
        cease: dict[int, PrefixUse] = {}
        for cidr, (old_number, old) in touched.items():
            number, use = self.number_of(cidr), self._use(cidr)
            if number is None:
                use = None
            if old_number is None:
                old = None
            if old == use and old_number == number:
                continue
            if use is not None and number is not None:
                # Until the policies have changed it is in use as before and as from now on.
                both = use
                if old is not None and old_number == number:
                    both = PrefixUse(
                        cidr, old.by_identity or use.by_identity, old.by_address or use.by_address
                    )
                if both != old or old_number != number:
                    begin[number] = both
                if both != use:
                    cease[number] = use
            if old is not None and old_number is not None and (use is None or old_number != number):
                cease[old_number] = PrefixUse(cidr)
        policies: list[PolicyPut | PolicyDelete] = []
        for ref, former in before.items():
            present = self.policies.get(ref)
            if present is None:
                if former is not None:
                    policies.append(PolicyDelete(ref))
            elif former != present.bound:
                policies.append(PolicyPut(present.bound))
        return Steps(
            tuple(_put(number, use) for number, use in begin.items()),
            tuple(begin.items()),
            tuple(policies),
            # Nodes know prefixes by their text: one that goes on under another number has not ceased.
            tuple(
                (number, use) for number, use in cease.items() if _used(use) or self._use(use.cidr) is None
            ),
            tuple(_put(number, use) if _used(use) else PrefixDelete(number) for number, use in cease.items()),
        )


def _used(use: PrefixUse) -> bool:
    return use.by_identity or use.by_address


def _put(number: int, use: PrefixUse) -> PrefixPut:
    return PrefixPut(number, use.cidr, use.by_identity, use.by_address)
