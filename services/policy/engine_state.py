# SPDX-License-Identifier: Apache-2.0
"""What the engine keeps of one subject, and how a change of it becomes a delta.

A column is a key without the identity, and what is kept of it are the parts of rules that speak for it, the
deciding one first. Whom a part is about is a bitmap that all subjects share, so that an entry takes no room
of its own: it is what the first part says whose bitmap has the identity. Keys and words are integers inside.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence, Set

from pyroaring import BitMap

from services.policy.engine_events import Subject, SubjectChange
from services.policy.engine_rules import Part, Spec
from services.policy.engine_words import (
    IDENTITY_BITS,
    IDENTITY_MASK,
    NOBODY,
    moves,
    split_column,
    value_of,
)
from services.policy.entries import (
    AUDIT,
    BY_ADDRESS,
    TIER_MASK,
    Enforcers,
    EntryKey,
    EntryValue,
    SubjectPolicy,
    Transition,
)
from services.policy.rules import Direction, PolicyRef, Tier
from services.policy.selector import RESERVED, Labels

# A single part stands for itself; several are sorted by their claim.
Column = Part | list[Part]


class SubjectState:
    """One subject: the specs that select it, the columns of their rules, and what has changed since the last
    delta.
    """

    __slots__ = (
        "baselines",
        "columns",
        "enforced",
        "enforcers",
        "had_baseline",
        "known",
        "node",
        "now",
        "respecified",
        "said",
        "specs",
        "subject",
        "tracked",
        "was",
    )

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        # What is known of a pod is known by its identity; a node brings its labels along.
        self.node = Labels((*subject.labels, f"{RESERVED}:host")) if subject.is_node else None
        self.known = self.node is not None
        # Whether its state has been told, so that changes of it are.
        self.tracked = False
        self.specs: dict[Spec, None] = {}
        self.columns: dict[int, Column] = {}
        self.enforcers = _Enforcers()
        self.respecified = False
        self.said = self.enforcers.said()
        # By key: the claim that decided it before the batch, and the one that does now.
        self.was: dict[int, int] = {}
        self.now: dict[int, int] = {}
        # By direction: how many columns of the baseline there are, and whether there were some in the batch.
        self.baselines = [0, 0]
        self.had_baseline = [False, False]

    # -- what speaks for a key

    def winner(self, column: int, number: int) -> int:
        """The claim that decides for an identity; NOBODY if none does."""
        held = self.columns.get(column)
        if held is None:
            return NOBODY
        if isinstance(held, Part):
            return held.claim if number in held.matched.numbers else NOBODY
        return next((part.claim for part in held if number in part.matched.numbers), NOBODY)

    def add(self, column: int, parts: list[Part]) -> None:
        """The parts, all of one rule, speak for a key from now on."""
        claim = parts[0].claim
        held = self.columns.get(column)
        others = _listed(held)
        if self.tracked:
            self._note(column, claim, parts, others, added=True)
        if held is None:
            self._count_baseline(column, 1)
        if held is None and len(parts) == 1:
            self.columns[column] = parts[0]
        elif isinstance(held, list):
            place = bisect_right(held, claim, key=_by_claim)
            held[place:place] = parts
        else:
            self.columns[column] = sorted([*others, *parts], key=_by_claim)

    def remove(self, column: int, parts: list[Part]) -> None:
        """The parts, all of one rule, no longer speak for a key."""
        held = self.columns[column]
        if isinstance(held, Part):
            left = []
        else:
            gone = set(parts)
            left = [part for part in held if part not in gone]
        if left:
            self.columns[column] = left if len(left) > 1 else left[0]
        else:
            del self.columns[column]
            self._count_baseline(column, -1)
        if self.tracked:
            self._note(column, parts[0].claim, parts, left, added=False)

    def _count_baseline(self, column: int, step: int) -> None:
        direction, _, _, _, space = split_column(column)
        if space & TIER_MASK == Tier.BASELINE and not space & AUDIT:
            self.baselines[direction] += step
            self.had_baseline[direction] = True

    # -- the journal

    def note(self, column: int, number: int, before: int, after: int) -> None:
        """Another claim decides for an identity now."""
        key = column << IDENTITY_BITS | number
        self.was.setdefault(key, before)
        self.now[key] = after

    def _note(
        self, column: int, claim: int, parts: list[Part], others: Sequence[Part], *, added: bool
    ) -> None:
        """Note what parts with this claim change that come to, or have gone from, these others."""
        # All of a rule's at once: it may have thousands of CIDRs.
        mine = BitMap.union(*(part.matched.numbers for part in parts))
        # Nothing where a claim comes before, or says the same.
        after = bisect_right(others, claim, key=_by_claim)
        for other in others[:after]:
            if not mine:
                return
            mine -= other.matched.numbers
        for other in others[after:]:
            if not mine:
                return
            shared = mine & other.matched.numbers
            if shared:
                self._note_all(column, shared, *((other.claim, claim) if added else (claim, other.claim)))
                mine -= shared
        self._note_all(column, mine, *((NOBODY, claim) if added else (claim, NOBODY)))

    def _note_all(self, column: int, numbers: BitMap, before: int, after: int) -> None:
        base = column << IDENTITY_BITS
        was, now = self.was, self.now
        for number in numbers:
            key = base | number
            if key not in was:
                was[key] = before
            now[key] = after

    # -- output

    def policy(self) -> SubjectPolicy:
        """The whole state."""
        entries: dict[EntryKey, EntryValue] = {}
        values: dict[int, EntryValue] = {}
        for column, held in self.columns.items():
            direction, protocol, port, prefix, space = split_column(column)
            covered = BitMap()
            for part in held if isinstance(held, list) else (held,):
                value = values.setdefault(part.claim, value_of(part.claim))
                numbers = part.matched.numbers
                for number in numbers - covered if covered else numbers:
                    entries[EntryKey(direction, number, protocol, port, prefix, space)] = value
                if isinstance(held, list):
                    covered |= numbers
        enforced, by, audited, audited_by = self.enforcers.said()
        return SubjectPolicy(enforced, by, entries, audited, audited_by)

    def change(self, inert: Set[tuple[int, bool]]) -> SubjectChange | None:
        """What the batch has changed; None when nothing has. Nobody has the numbers `inert`, in this use: by
        address, or by identity.
        """
        said = self.enforcers.said() if self.respecified else self.said
        if not self.known:
            return None
        if not self.tracked:
            return self._told(said, reset=True)
        upserts: list[tuple[EntryKey, EntryValue]] = []
        deletes: list[EntryKey] = []
        moved = 0
        # What changes in one way comes in runs: a run is worked out once.
        run: tuple[int, int, int] | None = None
        live = False
        for key, before in self.was.items():
            after = self.now[key]
            if before == after:
                continue
            column, number = key >> IDENTITY_BITS, key & IDENTITY_MASK
            if (column, before, after) != run:
                run = column, before, after
                direction, protocol, port, prefix, space = split_column(column)
                value = value_of(after)
                live = True
            if live and (number, space & BY_ADDRESS > 0) not in inert:
                moved |= self._moves(column, before, after)
                live = False
            entry = EntryKey(direction, number, protocol, port, prefix, space)
            if after == NOBODY:
                deletes.append(entry)
            else:
                upserts.append((entry, value))
        if not upserts and not deletes and said == self.said:
            return None
        for direction in Direction:
            if said[0][direction] != self.said[0][direction]:
                moved |= 2 if said[0][direction] else 1
        return self._told(said, tuple(upserts), tuple(deletes), transition=Transition(1 + moved))

    def _moves(self, column: int, before: int, after: int) -> int:
        direction, _, _, _, space = split_column(column)
        if space & AUDIT:
            return 0
        # While a direction has no default and no baseline, what the normal tier allows passes anyway.
        idle = (
            space & TIER_MASK == Tier.NORMAL
            and not self.said[0][direction]
            and not self.had_baseline[direction]
        )
        return moves(before, after, idle=idle)

    def _told(
        self,
        said: Said,
        upserts: tuple[tuple[EntryKey, EntryValue], ...] = (),
        deletes: tuple[EntryKey, ...] = (),
        *,
        reset: bool = False,
        transition: Transition = Transition.SWAP,
    ) -> SubjectChange:
        enforced, by, audited, audited_by = said
        return SubjectChange(
            self.subject, enforced, by, upserts, deletes, reset, audited, audited_by, transition
        )

    def settle(self) -> None:
        """What is there now is what the next batch is compared with."""
        if self.respecified:
            self.said = self.enforcers.said()
            self.respecified = False
        self.tracked = self.known
        self.was.clear()
        self.now.clear()
        self.had_baseline = [count > 0 for count in self.baselines]


Said = tuple[tuple[bool, bool], Enforcers, tuple[bool, bool], Enforcers]


class _Enforcers:
    """The policies that make a subject refuse what nothing allows, by [audit][direction], sorted."""

    __slots__ = ("_counts", "_sorted")

    def __init__(self) -> None:
        self._counts: dict[tuple[PolicyRef, bool, Direction], int] = {}
        self._sorted: tuple[list[PolicyRef], ...] = ([], [], [], [])

    def add(self, spec: Spec) -> None:
        for direction in spec.enforces:
            key = spec.ref, spec.audit, direction
            self._counts[key] = self._counts.get(key, 0) + 1
            if self._counts[key] == 1:
                insort(self._sorted[2 * spec.audit + direction], spec.ref)

    def remove(self, spec: Spec) -> None:
        for direction in spec.enforces:
            key = spec.ref, spec.audit, direction
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
                refs = self._sorted[2 * spec.audit + direction]
                del refs[bisect_left(refs, spec.ref)]

    def said(self) -> Said:
        ingress, egress, audit_ingress, audit_egress = map(tuple, self._sorted)
        return (
            (bool(ingress), bool(egress)),
            (ingress, egress),
            (bool(audit_ingress), bool(audit_egress)),
            (audit_ingress, audit_egress),
        )


def _listed(held: Column | None) -> Sequence[Part]:
    if held is None:
        return ()
    return held if isinstance(held, list) else (held,)


def _by_claim(part: Part) -> int:
    return part.claim
