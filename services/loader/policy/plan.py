"""How a subject's policy gets from what the kernel holds to what the policy service says, as plain data.

The kernel keeps all subjects' entries in one hash, told apart by an instance number; a subject's row names
the instance in force. A plan is a list of writes in this order: ``puts``, then ``removals``, then the row,
and some time later ``retired``. After every single write each packet gets either the verdict that it got
before the change or the one that it gets after it:

* Without an entry of one's own in the way, a verdict is "no deny entry covers the packet, and an allow
  entry does or the direction is not enforced". A change that only widens this (allows added, denies
  removed, enforcement lifted), or only narrows it, goes in place entry by entry: a packet's verdict turns
  once, at whichever write concerns it.
* Any other change is written under a new instance, which nothing refers to until the row does.

A row that narrows what passes carries a new epoch, so that established connections are judged again. Epochs
are never used twice on a node, not even by different subjects: an endpoint may change its subject.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from services.loader.policy.entries import EGRESS, INGRESS, EntryKey, EntryValue
from services.loader.policy.shape import Shape, shape_of


@dataclass(frozen=True, slots=True)
class DirectionDefault:
    """What holds in a direction where no entry decides; ``enforced_by`` names policies, for people."""

    enforced: bool = False
    enforced_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SubjectState:
    """A subject's policy as the service streams it."""

    ingress: DirectionDefault = field(default=DirectionDefault())
    egress: DirectionDefault = field(default=DirectionDefault())
    entries: Mapping[EntryKey, EntryValue] = field(default_factory=dict)
    revision: int = 0

    def enforced(self, direction: int) -> bool:
        """Whether what no entry allows is denied."""
        return self.ingress.enforced if direction == INGRESS else self.egress.enforced


@dataclass(frozen=True, slots=True)
class Realized:
    """A subject's policy as the kernel holds it."""

    instance: int
    epoch: int
    revision: int
    ingress_enforced: bool
    egress_enforced: bool
    entries: Mapping[EntryKey, EntryValue]
    shape: Shape

    def enforced(self, direction: int) -> bool:
        """Whether what no entry allows is denied."""
        return self.ingress_enforced if direction == INGRESS else self.egress_enforced


@dataclass(frozen=True, slots=True)
class Plan:
    """The writes that bring a subject from one state to the next; see the module for their order.

    ``puts`` and ``removals`` belong to ``target.instance``, ``retired`` to ``retired_instance``.
    """

    target: Realized
    in_place: bool
    puts: tuple[tuple[EntryKey, EntryValue], ...]
    removals: tuple[EntryKey, ...] = ()
    retired_instance: int = 0
    retired: tuple[EntryKey, ...] = ()


def apply_delta(
    state: SubjectState,
    *,
    ingress: DirectionDefault,
    egress: DirectionDefault,
    upserts: Mapping[EntryKey, EntryValue],
    deletes: frozenset[EntryKey],
    revision: int,
) -> SubjectState:
    """The subject's state after a delta."""
    entries = dict(state.entries)
    for key in deletes:
        entries.pop(key, None)
    entries.update(upserts)
    return SubjectState(ingress, egress, entries, revision)


def plan(
    current: Realized | None,
    wanted: SubjectState,
    *,
    fresh_instance: int,
    fresh_epoch: int,
    touched: Collection[EntryKey] | None = None,
) -> Plan | None:
    """The writes that make the kernel hold ``wanted``; None when it does already.

    ``fresh_instance`` and ``fresh_epoch`` have never been used before; the plan's target says which of them
    it took.
    """
    if current is None:
        target = _target(wanted, fresh_instance, fresh_epoch, shape_of(wanted.entries))
        return Plan(target, in_place=False, puts=tuple(wanted.entries.items()))
    looked_at = wanted.entries if touched is None else [key for key in touched if key in wanted.entries]
    puts = tuple(
        (key, wanted.entries[key]) for key in looked_at if current.entries.get(key) != wanted.entries[key]
    )
    looked_at = current.entries if touched is None else [key for key in touched if key in current.entries]
    removals = tuple(key for key in looked_at if key not in wanted.entries)
    widens, narrows = _effect(current, wanted, puts, removals)
    if not puts and not removals and not widens and not narrows:
        return None
    gone = [(key, current.entries[key]) for key, _ in puts if key in current.entries]
    gone += [(key, current.entries[key]) for key in removals]
    shape = current.shape.changed(gone=gone, come=puts)
    if widens and narrows:
        return Plan(
            _target(wanted, fresh_instance, fresh_epoch, shape),
            in_place=False,
            puts=tuple(wanted.entries.items()),
            retired_instance=current.instance,
            retired=tuple(current.entries),
        )
    epoch = fresh_epoch if narrows else current.epoch
    target = _target(wanted, current.instance, epoch, shape)
    return Plan(target, in_place=True, puts=puts, removals=removals)


def _target(wanted: SubjectState, instance: int, epoch: int, shape: Shape) -> Realized:
    return Realized(
        instance=instance,
        epoch=epoch,
        revision=wanted.revision,
        ingress_enforced=wanted.ingress.enforced,
        egress_enforced=wanted.egress.enforced,
        # Shared: a state's entries are never changed, a delta makes new ones.
        entries=wanted.entries,
        shape=shape,
    )


def _effect(
    current: Realized,
    wanted: SubjectState,
    puts: tuple[tuple[EntryKey, EntryValue], ...],
    removals: tuple[EntryKey, ...],
) -> tuple[bool, bool]:
    """Whether the change lets more pass, and whether it lets less pass."""
    widens = narrows = False
    for key, value in puts:
        before = current.entries.get(key)
        if before is not None and before.deny == value.deny:
            continue  # only the rule that is named changes
        if before is not None or value.deny:
            widens, narrows = widens or not value.deny, narrows or value.deny
        else:
            widens = True
    for key in removals:
        if current.entries[key].deny:
            widens = True
        else:
            narrows = True
    for direction in (INGRESS, EGRESS):
        if current.enforced(direction) and not wanted.enforced(direction):
            widens = True
        elif wanted.enforced(direction) and not current.enforced(direction):
            narrows = True
    return widens, narrows
