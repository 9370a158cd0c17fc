"""The node's subjects: whose policy each of them is, what the service says of it, what the kernel holds of
it.

A subject is an identity together with the named ports of its pods; all endpoints of the node that agree in
both share its policy entries. The node itself is one more, with its labels. A subject without a row in the
kernel passes nothing, so nothing here is in a hurry to be safe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from services.chassis.logs import get_logger
from services.loader import failpoints
from services.loader.endpoints.endpoint import NamedPort
from services.loader.interfaces import DatapathError, PolicyKernel, SubjectHead
from services.loader.policy.entries import EntryKey, EntryValue
from services.loader.policy.plan import Plan, Realized, SubjectState, plan
from services.loader.policy.readings import Entries
from services.loader.policy.shape import shape_of

# The node itself, among the users of a subject: the endpoint id that it has in the datapath.
HOST_USER: Final = 0xFFFFFFFF

# A packet that read the old row may still be among the old entries; it is not for this long.
RETIRE_SECONDS: Final = 0.25

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SubjectKey:
    """What makes two endpoints share their policy. Only the node itself has ``labels``."""

    identity: int
    named_ports: tuple[NamedPort, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Subject:
    """A subject. ``wanted`` is what the service said last (see :meth:`want`); ``realized`` is what the kernel
    holds; ``touched`` are the keys in which the two may differ, None when that is not known. ``whole``: what
    differs must come into force at once; ``judge_again``: with established connections judged anew (see
    :func:`~services.loader.policy.plan.plan`). ``follow`` is called when the kernel holds what is wanted, as
    part of realizing it; it may raise DatapathError.
    """

    number: int
    key: SubjectKey
    identity_revision: int = 0
    users: set[int] = field(default_factory=set)
    wanted: SubjectState | None = None
    realized: Realized | None = None
    error: str = ""
    touched: set[EntryKey] | None = None
    whole: bool = False
    judge_again: bool = False
    follow: Callable[[Subject], None] | None = None

    def want(
        self, state: SubjectState, touched: Collection[EntryKey] | None = None, *, whole: bool = False
    ) -> None:
        """Takes what the service says now; it differs from before in ``touched`` only, if that is given, and
        is to come into force as a ``whole``.
        """
        self.wanted = state
        self.touched = None if touched is None or self.touched is None else self.touched.union(touched)
        self.whole = self.whole or whole

    @property
    def current(self) -> bool:
        """The kernel holds what the service said last."""
        return self.realized is not None and not self.error


class Counter(Protocol):
    """Gives out numbers that were never given out before."""

    def take(self) -> int: ...


class SubjectTable:
    """All subjects of the node. ``later(seconds, call)`` runs a call after a while; ``dormant`` tells of an
    identity, or of a number by address, whether no packet can have it.
    """

    def __init__(
        self,
        kernel: PolicyKernel,
        *,
        instances: Counter,
        epochs: Counter,
        numbers: Counter,
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._kernel = kernel
        self._instances = instances
        self._epochs = epochs
        self._numbers = numbers
        self._later = later
        self.dormant: Callable[[int, bool], bool] = lambda identity, by_address: False
        self._by_number: dict[int, Subject] = {}
        self._by_key: dict[SubjectKey, Subject] = {}
        self._host: Subject | None = None
        # Numbers and instances that are removed in a moment.
        self._leaving: set[int] = set()
        self._retiring: set[int] = set()

    def __iter__(self) -> Iterator[Subject]:
        return iter(list(self._by_number.values()))

    def get(self, number: int) -> Subject | None:
        """The subject of a number, if there is one."""
        return self._by_number.get(number)

    def of_host(self) -> Subject | None:
        """The node's own subject, if it has one."""
        return self._host

    def failed(self) -> list[Subject]:
        """Subjects whose last realization failed."""
        return [subject for subject in self._by_number.values() if subject.error]

    def acquire(self, key: SubjectKey, identity_revision: int, user: int) -> tuple[Subject, bool]:
        """The subject of a key, with the endpoint ``user`` among its users, and whether it is new."""
        subject = self._by_key.get(key)
        new = subject is None
        if subject is None:
            subject = Subject(self._numbers.take(), key, identity_revision)
            self._add(subject)
        self._use(subject, user)
        return subject, new

    def release(self, subject: Subject, user: int) -> bool:
        """Ends a use. Returns True when it was the last: the subject is gone, soon from the kernel too."""
        subject.users.discard(user)
        if subject.users or self._by_number.get(subject.number) is not subject:
            return False
        del self._by_number[subject.number]
        del self._by_key[subject.key]

        self._leaving.add(subject.number)
        if subject.realized is not None:
            self._retiring.add(subject.realized.instance)

        def remove() -> None:
            self._leaving.discard(subject.number)
            if subject.realized is not None:
                self._retiring.discard(subject.realized.instance)
            try:
                self._kernel.delete_subject(subject.number)
                if subject.realized is not None:
                    self._kernel.delete_policy(subject.realized.instance, tuple(subject.realized.entries))
            except DatapathError as problem:
                # Nobody refers to it any more; the next start removes it.
                _log.warning("subject.delete_failed", subject=subject.number, error=str(problem))

        # A packet may have read its endpoint's row just before that named another subject.
        self._later(RETIRE_SECONDS, remove)
        return True

    def restore(
        self, key: SubjectKey, number: int, identity_revision: int, user: int, realized: Realized | None
    ) -> Subject:
        """Takes up a subject that a former process made, under its number, with what the kernel holds of
        it.
        """
        subject = self._by_number.get(number)
        if subject is None:
            subject = Subject(number, key, identity_revision, realized=realized)
            self._add(subject)
        self._use(subject, user)
        return subject

    def realize(self, subject: Subject) -> Plan | None:
        """Writes what ``wanted`` says; None when the kernel holds it already.

        Raises DatapathError. What was in force before is then still in force, the subject's ``error`` says
        why, and calling again tries again.
        """
        if subject.wanted is None:
            return None
        try:
            if subject.error:
                self._read_back(subject)
            todo = self._plan(subject, subject.wanted)
            if todo is not None:
                self._execute(subject, todo)
            if subject.follow is not None:
                subject.follow(subject)
        except (DatapathError, OSError) as problem:
            subject.error = str(problem)
            raise problem if isinstance(problem, DatapathError) else DatapathError(str(problem)) from problem
        subject.error = ""
        subject.touched = set()
        subject.whole = subject.judge_again = False
        return todo

    def entries(self) -> Entries:
        """Every entry that the kernel holds, by instance. For a thread. Raises DatapathError."""
        return self._kernel.walk_policy()

    def agrees(self, subject: Subject, entries: Entries) -> bool:
        """Whether the kernel holds what it was last given for the subject. Raises DatapathError."""
        known = subject.realized
        return known is None or (
            self._kernel.holds(subject.number, known) and entries.get(known.instance, {}) == known.entries
        )

    def compare(self, subject: Subject, entries: Entries) -> Plan | None:
        """Compares the subject with the kernel itself and writes what differs. ``entries`` were read from the
        kernel when the subject was as it is now. Raises DatapathError.
        """
        known = subject.realized
        if known is None or not self._kernel.holds(subject.number, known):
            self._read_back(subject)
        else:
            held = entries.get(known.instance, {})
            if held != known.entries:
                subject.realized = replace(known, entries=held, shape=shape_of(held))
                subject.touched = None
        return self.realize(subject)

    def rewrite(self, subject: Subject) -> Plan | None:
        """:meth:`compare` with what is read here and now."""
        return self.compare(subject, self._kernel.policy())

    def strays(self) -> tuple[list[int], dict[int, tuple[EntryKey, ...]]]:
        """Rows that belong to no subject, and by instance entries that no subject's policy is made of, but
        for those that are on their way out. Raises DatapathError.
        """
        rows = [
            number
            for number in self._kernel.subjects()
            if number not in self._by_number and number not in self._leaving
        ]
        kept = {
            subject.realized.instance for subject in self._by_number.values() if subject.realized is not None
        }
        kept |= self._retiring
        found = self._kernel.policy()
        return rows, {number: tuple(keys) for number, keys in found.items() if number not in kept}

    def sweep(self) -> tuple[int, int]:
        """Removes what :meth:`strays` finds; returns how many rows and entries that were. Raises
        DatapathError.
        """
        rows, entries = self.strays()
        for number in rows:
            self._kernel.delete_subject(number)
        for instance, keys in entries.items():
            self._kernel.delete_policy(instance, keys)
        return len(rows), sum(map(len, entries.values()))

    def remove_stray_subject(self, number: int) -> None:
        """Removes a row, if it belongs to no subject. Raises DatapathError."""
        if number not in self._by_number:
            self._kernel.delete_subject(number)

    def remove_stray_entries(self, instance: int, keys: tuple[EntryKey, ...]) -> None:
        """Removes entries that :meth:`strays` has found. Raises DatapathError."""
        self._kernel.delete_policy(instance, keys)

    def _add(self, subject: Subject) -> None:
        self._by_number[subject.number] = subject
        self._by_key.setdefault(subject.key, subject)

    def _use(self, subject: Subject, user: int) -> None:
        subject.users.add(user)
        if user == HOST_USER:
            self._host = subject

    def _plan(self, subject: Subject, wanted: SubjectState) -> Plan | None:
        return plan(
            subject.realized,
            wanted,
            fresh_instance=self._instances.take(),
            fresh_epoch=self._epochs.take(),
            touched=subject.touched,
            whole=subject.whole,
            judged_again=subject.judge_again,
            dormant=self.dormant,
        )

    def _execute(self, subject: Subject, todo: Plan) -> None:
        target = todo.target
        try:
            self._kernel.put_policy(target.instance, todo.puts)
            if not todo.in_place:
                failpoints.passed("policy.instance_written")
            self._kernel.delete_policy(target.instance, todo.removals)
            self._kernel.put_subject(subject.number, target)
        except (DatapathError, OSError):
            if not todo.in_place:
                self._retire(target.instance, tuple(key for key, _ in todo.puts))
            raise
        failpoints.passed("policy.in_force")
        subject.realized = target
        if todo.retired:
            self._retire(todo.retired_instance, todo.retired)

    def _retire(self, instance: int, keys: tuple[EntryKey, ...]) -> None:
        def remove() -> None:
            self._retiring.discard(instance)
            try:
                self._kernel.delete_policy(instance, keys)
                failpoints.passed("policy.old_deleted")
            except (DatapathError, OSError) as problem:
                _log.warning("policy.retire_failed", instance=instance, entries=len(keys), error=str(problem))

        if keys:
            self._retiring.add(instance)
            self._later(RETIRE_SECONDS, remove)

    def _read_back(self, subject: Subject) -> None:
        """After a failure only the kernel knows what it holds."""
        head = self._kernel.subjects().get(subject.number)
        subject.realized = None
        subject.touched = None
        if head is not None:
            subject.realized = realized_from(head, self._kernel.policy().get(head.instance, {}))


def realized_from(head: SubjectHead, entries: Mapping[EntryKey, EntryValue]) -> Realized:
    """A subject's row and entries, as read from the kernel, in one."""
    return Realized(
        instance=head.instance,
        epoch=head.epoch,
        revision=head.revision,
        ingress_enforced=head.ingress_enforced,
        egress_enforced=head.egress_enforced,
        entries=entries,
        shape=shape_of(entries),
        audit_enforced=head.audit_enforced,
    )
