"""How a subject's policy gets from what the kernel holds to what the policy service says, as plain data.

The kernel keeps all subjects' entries in one hash, told apart by an instance number; a subject's row names
the instance in force. A plan is a list of writes in this order: ``puts``, then ``removals``, then the row,
and some time later ``retired``. After every single write each packet gets either the verdict that it got
before the change or the one that it gets after it.

Why that is so. Of the entries that cover a packet, by its identity or by the prefix that holds its address,
the one of the tier ADMIN with the lowest order decides (at equal order denying, passing, allowing), unless it
passes; then the tier NORMAL denies if any of its entries does, allows if any does, denies if the direction is
enforced; then the tier BASELINE decides as ADMIN does; what nothing decides passes. Look at one write alone,
with whatever else there may be:

* An allowing entry that comes never turns an allowed packet into a denied one, in any tier. In ADMIN and
  BASELINE it takes the place of what had a higher order, or is behind a lower one and decides nothing. In
  NORMAL it counts where nothing denies, and keeps BASELINE from being asked. Likewise a denying entry that
  comes never lets a packet pass that did not. An entry that goes does the opposite of one that comes; one
  that turns from allow to deny or back in its place, with its order, is a going and a coming of the same
  effect. Enforcement that comes only denies, namely what BASELINE would have been asked about, and one that
  goes only lets pass.
* A passing entry that comes may do either, as it puts the verdict into other hands; so may one that goes,
  and an entry that changes its order.

So a change is one that only *widens* (allows added, denies removed, enforcement lifted) or only *narrows* if
all its writes are that. Then it goes in place, entry by entry. Whichever of the writes a packet sees, none,
all, or some of them only, since it looks at several entries while they are written and since the row hides
those of a kind that it does not know of: each moves its verdict the same way, so that it lies between before
and after, and there are only two verdicts. Over time it turns once at most.

Any other change, and what the service says must come as a whole, is written under a new instance, which
nothing refers to until the row does. A packet reads the row once.

Entries about a number that no packet can have, since the prefix of that number has not begun to take effect
or has ended, change no verdict: they are written in place too. So a new prefix costs what its own entries
cost.

Entries of policies in audit mode change no verdict. They are written in place, with the row that says where
to look for them; what is reported of a packet meanwhile may be of neither state.

Which prefix holds an address is kept elsewhere, see :mod:`services.loader.policy.prefixes`: while a plan is
executed it does not change, and a prefix takes effect only after the entries about it are there.

A row that narrows what passes carries a new epoch, so that established connections are judged again. So
does one that is to have them ``judged_again`` for another reason: flows remember the identity of their other
end and notice when it changes, but not which prefix held its address. Epochs are never used twice on a node,
not even by different subjects: an endpoint may change its subject.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from services.loader.policy.entries import EGRESS, INGRESS, EntryKey, EntryValue
from services.loader.policy.shape import Shape, shape_of


@dataclass(frozen=True, slots=True)
class DirectionDefault:
    """What holds in a direction where no entry decides; ``enforced_by`` names policies, for people.

    ``audit_enforced``: it would be enforced with the policies in audit mode.
    """

    enforced: bool = False
    enforced_by: tuple[str, ...] = ()
    audit_enforced: bool = False
    audit_enforced_by: tuple[str, ...] = ()


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

    @property
    def audit_enforced(self) -> tuple[bool, bool]:
        """By direction, whether what no entry allows would be denied with the policies in audit mode."""
        return self.ingress.audit_enforced, self.egress.audit_enforced

    @property
    def selected(self) -> bool:
        """Whether a policy has anything to say, be it one in audit mode."""
        return self.decides or any(self.audit_enforced) or bool(self.entries)

    @property
    def decides(self) -> bool:
        """Whether a policy that is not in audit mode has anything to say."""
        return self.ingress.enforced or self.egress.enforced or any(not key.audit for key in self.entries)


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
    audit_enforced: tuple[bool, bool] = (False, False)

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
    whole: bool = False,
    judged_again: bool = False,
    dormant: Callable[[int, bool], bool] = lambda identity, by_address: False,
) -> Plan | None:
    """The writes that make the kernel hold ``wanted``; None when it does already.

    ``whole``: whatever changes verdicts comes into force at once. ``judged_again``: so are established
    connections. ``dormant`` tells of an identity, or of a number by address, whether no packet can have it
    until the plan has been executed. ``fresh_instance`` and ``fresh_epoch`` have never been used before; the
    plan's target says which of them it took.
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
    widens, narrows = _effect(current, wanted, puts, removals, dormant)
    audit = current.audit_enforced != wanted.audit_enforced
    if not (puts or removals or widens or narrows or audit or judged_again):
        return None
    gone = [(key, current.entries[key]) for key, _ in puts if key in current.entries]
    gone += [(key, current.entries[key]) for key in removals]
    shape = current.shape.changed(gone=gone, come=puts)
    if (widens and narrows) or (whole and (widens or narrows)):
        return Plan(
            _target(wanted, fresh_instance, fresh_epoch, shape),
            in_place=False,
            puts=tuple(wanted.entries.items()),
            retired_instance=current.instance,
            retired=tuple(current.entries),
        )
    epoch = fresh_epoch if narrows or judged_again else current.epoch
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
        audit_enforced=wanted.audit_enforced,
    )


def _effect(
    current: Realized,
    wanted: SubjectState,
    puts: tuple[tuple[EntryKey, EntryValue], ...],
    removals: tuple[EntryKey, ...],
    dormant: Callable[[int, bool], bool],
) -> tuple[bool, bool]:
    """Whether the change lets more pass, and whether it lets less pass; both where that is not plain."""
    widens = narrows = False
    for key, value in puts:
        before = current.entries.get(key)
        if key.audit or dormant(key.identity, key.by_address):
            continue  # only what is reported changes, or nothing at all
        if before is not None and before.says_the_same(value):
            continue  # only the rule that is named changes
        if value.passes or (before is not None and (before.passes or before.order != value.order)):
            return True, True
        # An entry that changes its mind in its place is one that goes and one that comes, of one effect.
        widens, narrows = widens or not value.deny, narrows or value.deny
    for key in removals:
        before = current.entries[key]
        if key.audit or dormant(key.identity, key.by_address):
            continue
        if before.passes:
            return True, True
        widens, narrows = widens or before.deny, narrows or not before.deny
    for direction in (INGRESS, EGRESS):
        if current.enforced(direction) and not wanted.enforced(direction):
            widens = True
        elif wanted.enforced(direction) and not current.enforced(direction):
            narrows = True
    return widens, narrows
