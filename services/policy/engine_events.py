# SPDX-License-Identifier: Apache-2.0
"""What the engine is told, and what it says."""

from __future__ import annotations

from dataclasses import dataclass

from services.policy.entries import Enforcers, EntryKey, EntryValue, Transition
from services.policy.resolve import BoundPolicy
from services.policy.rules import NamedPort, PolicyRef
from services.policy.selector import Labels

HOST = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """What a policy state belongs to: pods that agree in identity and ports have the same one. `ports` is
    sorted.

    The identity HOST is a node itself, and `labels` are that node's, sorted; no other subject has any.
    """

    identity: int
    ports: tuple[NamedPort, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def is_node(self) -> bool:
        return self.identity == HOST


@dataclass(frozen=True, slots=True)
class PolicyPut:
    bound: BoundPolicy


@dataclass(frozen=True, slots=True)
class PolicyDelete:
    ref: PolicyRef


@dataclass(frozen=True, slots=True)
class IdentityPut:
    number: int
    labels: Labels


@dataclass(frozen=True, slots=True)
class IdentityDelete:
    number: int


@dataclass(frozen=True, slots=True)
class PrefixPut:
    """A prefix has a number and is in use like this; it may have been used otherwise before.

    Entries for it say what it will mean; nobody has the number until the change has been delivered.
    """

    number: int
    cidr: str
    by_identity: bool = False
    by_address: bool = False


@dataclass(frozen=True, slots=True)
class PrefixDelete:
    """Nobody has the number any longer."""

    number: int


@dataclass(frozen=True, slots=True)
class PortsPut:
    """All the ports that pods with this identity declare, wherever they are; none: no longer any."""

    number: int
    ports: frozenset[NamedPort]


@dataclass(frozen=True, slots=True)
class SubjectAdd:
    subject: Subject


@dataclass(frozen=True, slots=True)
class SubjectRemove:
    subject: Subject


Event = (
    PolicyPut
    | PolicyDelete
    | IdentityPut
    | IdentityDelete
    | PrefixPut
    | PrefixDelete
    | PortsPut
    | SubjectAdd
    | SubjectRemove
)


@dataclass(frozen=True, slots=True)
class SubjectChange:
    """What a batch of events changed of one subject, and how it can be put into force.

    `reset`: the subject's identity has become known, so that its whole state is new and is to be read with
    `Engine.state`. A subject whose identity goes away changes nothing: what was last said stays in force.
    """

    subject: Subject
    enforced: tuple[bool, bool]
    enforced_by: Enforcers
    upserts: tuple[tuple[EntryKey, EntryValue], ...] = ()
    deletes: tuple[EntryKey, ...] = ()
    reset: bool = False
    audit_enforced: tuple[bool, bool] = (False, False)
    audit_enforced_by: Enforcers = ((), ())
    transition: Transition = Transition.SWAP
