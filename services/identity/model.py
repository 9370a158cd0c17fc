"""What identity keeps about a label set, as plain values. For the ipcache's entries see ipcache.py."""

from __future__ import annotations

from dataclasses import dataclass

from services.chassis.labels import LabelSet
from services.identity.reserved import RESERVED_IDENTITIES, is_reserved, reserved_labels


@dataclass(frozen=True, slots=True)
class Identity:
    """A number and the label set that it stands for.

    `revision` is the one of the identity feed at which it was made, 0 for reserved identities. `name` is set
    for these only.
    """

    number: int
    labels: LabelSet
    revision: int = 0
    name: str = ""


def reserved_identity(number: int) -> Identity:
    """The reserved identity of that number; see `reserved.is_reserved`."""
    return Identity(number, reserved_labels(number), name=RESERVED_IDENTITIES[number])


def reserved_identities() -> tuple[Identity, ...]:
    """Every reserved identity that somebody can have, by number."""
    return tuple(reserved_identity(number) for number in sorted(RESERVED_IDENTITIES) if is_reserved(number))
