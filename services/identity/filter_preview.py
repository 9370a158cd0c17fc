"""What another label filter would do to the identities that there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.chassis.labels import LabelSet
from services.identity.label_filter import LabelFilter
from services.identity.model import Identity


@dataclass(frozen=True, slots=True)
class FilterChange:
    """What a filter does to an identity: its workloads' labels afterwards, and the number of that set today,
    0 where it has none. `entries` is how many ipcache entries have the identity.
    """

    identity: Identity
    labels: LabelSet
    becomes: int
    entries: int


@dataclass(frozen=True, slots=True)
class Preview:
    """The identities that change, by number; how many ipcache entries have one of them; and how many label
    sets several of today's identities come to share.
    """

    changes: Sequence[FilterChange] = ()
    entries: int = 0
    merged: int = 0


def preview(label_filter: LabelFilter, found: Iterable[Identity], entries: Mapping[int, int]) -> Preview:
    """`entries` has the number of ipcache entries of each identity that has any."""
    after = [(identity, label_filter.apply(identity.labels)) for identity in found]
    today = {identity.labels: identity.number for identity, _ in after}
    changes = [
        FilterChange(identity, labels, today.get(labels, 0), entries.get(identity.number, 0))
        for identity, labels in after
        if labels != identity.labels
    ]
    shared = Counter(labels for _, labels in after)
    return Preview(
        changes,
        sum(change.entries for change in changes),
        sum(1 for count in shared.values() if count > 1),
    )
