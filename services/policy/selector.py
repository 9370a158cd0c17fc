# SPDX-License-Identifier: Apache-2.0
"""Label selectors: which sets of labels they match.

Labels are strings `source:key=value`. A requirement names a source or `any`, which stands for every source,
as in Cilium's selectors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

ANY_SOURCE = "any"
K8S = "k8s"
RESERVED = "reserved"
CIDR = "cidr"

NAMESPACE_KEY = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS_PREFIX = "io.cilium.k8s.namespace.labels."


class Labels:
    """An immutable set of labels.

    Built from strings `source:key=value`; a missing `=` means an empty value. Equality is that of the
    strings. Made to be held by the hundred thousand: the strings are shared, and nothing is kept beside them.
    """

    __slots__ = ("_sorted",)

    def __init__(self, labels: Iterable[str]) -> None:
        self._sorted: tuple[str, ...] = tuple(map(sys.intern, sorted(set(labels))))

    @property
    def strings(self) -> frozenset[str]:
        return frozenset(self._sorted)

    def values(self, source: str, key: str) -> tuple[str, ...]:
        """The values that `key` has; of every source when `source` is `any`."""
        # Most labels are told apart without being taken apart.
        return tuple(
            value
            for owner, name, value in map(parts, (label for label in self._sorted if key in label))
            if name == key and source in (ANY_SOURCE, owner)
        )

    def indexed(self) -> IndexedLabels:
        """The same for many questions one after the other."""
        return IndexedLabels(self)

    @property
    def is_node(self) -> bool:
        """Whether they are a node's: policies for nodes select it, and those for pods never do."""
        return bool(self.values(RESERVED, "host"))

    def parts(self) -> Iterator[tuple[str, str, str]]:
        """Every (source, key, value)."""
        return map(parts, self._sorted)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Labels) and self._sorted == other._sorted

    def __hash__(self) -> int:
        return hash(self._sorted)

    def __repr__(self) -> str:
        return f"Labels({list(self._sorted)})"


class IndexedLabels:
    """Labels by key: quicker to ask than `Labels`, and too large to be held for each identity."""

    __slots__ = ("_by_key",)

    def __init__(self, labels: Labels) -> None:
        self._by_key: dict[str, list[tuple[str, str]]] = {}
        for source, key, value in labels.parts():
            self._by_key.setdefault(key, []).append((source, value))

    def values(self, source: str, key: str) -> Sequence[str]:
        """As `Labels.values`."""
        found = self._by_key.get(key)
        if found is None:
            return ()
        return [value for owner, value in found if source in (ANY_SOURCE, owner)]


def parts(label: str) -> tuple[str, str, str]:
    """A label's (source, key, value)."""
    head, _, value = label.partition("=")
    source, _, key = head.partition(":")
    return source, key, value


class Operator(Enum):
    """How a requirement compares, by its name in manifests."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one key. `values` is sorted; empty for Exists and DoesNotExist.

    NotIn also holds when the key is absent, as in Kubernetes.
    """

    source: str
    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def holds(self, labels: Labels | IndexedLabels) -> bool:
        found = labels.values(self.source, self.key)
        if self.operator is Operator.IN:
            return not _apart(found, self.values)
        if self.operator is Operator.NOT_IN:
            return _apart(found, self.values)
        if self.operator is Operator.EXISTS:
            return bool(found)
        return not found

    def __str__(self) -> str:
        name = f"{self.source}:{self.key}"
        if self.operator is Operator.IN and len(self.values) == 1:
            return f"{name}={self.values[0]}"
        if self.operator is Operator.EXISTS:
            return name
        if self.operator is Operator.DOES_NOT_EXIST:
            return f"!{name}"
        joined = ",".join(self.values)
        return f"{name} {'in' if self.operator is Operator.IN else 'notin'} ({joined})"


def _apart(found: Sequence[str], wanted: tuple[str, ...]) -> bool:
    # Without a generator: nearly always there is one label at most.
    for value in found:  # noqa: SIM110
        if value in wanted:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Selector:
    """A conjunction of requirements, sorted and without repeats; equal selectors compare equal.

    Without requirements it matches every identity, the world included.
    """

    requirements: tuple[Requirement, ...] = ()

    @classmethod
    def of(cls, requirements: Iterable[Requirement]) -> Selector:
        unique = {(r.source, r.key, r.operator.value, r.values): r for r in requirements}
        return cls(tuple(unique[k] for k in sorted(unique)))

    @property
    def matches_everything(self) -> bool:
        return not self.requirements

    def matches(self, labels: Labels | IndexedLabels) -> bool:
        # Without a generator, which would cost more than most requirements.
        for requirement in self.requirements:  # noqa: SIM110
            if not requirement.holds(labels):
                return False
        return True

    def and_(self, *more: Requirement) -> Selector:
        return Selector.of((*self.requirements, *more))

    def __str__(self) -> str:
        return ", ".join(str(r) for r in self.requirements) or "everything"


EVERYTHING = Selector()


def equals(source: str, key: str, value: str) -> Requirement:
    return Requirement(source, key, Operator.IN, (value,))


def exists(source: str, key: str) -> Requirement:
    return Requirement(source, key, Operator.EXISTS)


def absent(source: str, key: str) -> Requirement:
    return Requirement(source, key, Operator.DOES_NOT_EXIST)
