# SPDX-License-Identifier: Apache-2.0
"""The ports that pods declare by name, by node: what egress rules with port names are resolved against.

A node that is disconnected, or not yet back after a restart of this service, still has its pods. What it
declared counts until it withdraws it, or has subscribed again and realized everything without declaring it
anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from services.policy.engine import Subject
from services.policy.rules import NamedPort


@dataclass(slots=True)
class _Node:
    present: set[Subject] = field(default_factory=set)
    # Declared on an earlier stream and not on this one yet.
    earlier: set[Subject] = field(default_factory=set)

    def all(self) -> frozenset[Subject]:
        return frozenset(self.present | self.earlier)


class DeclaredPorts:
    """Declarations by node. Methods that change them return the identities whose ports may have changed.

    `known` are the declarations of earlier processes; `changed` is called with a node whose declarations are
    others now.
    """

    def __init__(
        self,
        known: Mapping[str, Iterable[Subject]] | None = None,
        changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._changed = changed
        self._nodes = {name: _Node(earlier=set(subjects)) for name, subjects in (known or {}).items()}
        self._of: dict[int, dict[Subject, int]] = {}
        for node in self._nodes.values():
            for subject in node.earlier:
                self._count(subject, 1)

    def identities(self) -> list[int]:
        return list(self._of)

    def nodes(self) -> list[str]:
        return list(self._nodes)

    def of(self, number: int) -> frozenset[NamedPort]:
        """Every port that some pod with this identity declares."""
        return frozenset(port for subject in self._of.get(number, ()) for port in subject.ports)

    def by_node(self, name: str) -> frozenset[Subject]:
        """What a node declares; nothing for a node that is not known."""
        node = self._nodes.get(name)
        return node.all() if node is not None else frozenset()

    def declare(self, name: str, subject: Subject) -> list[int]:
        if not subject.ports:
            return []
        node = self._nodes.setdefault(name, _Node())
        if subject in node.present:
            return []
        new = subject not in node.earlier
        node.earlier.discard(subject)
        node.present.add(subject)
        if not new:
            return []
        self._count(subject, 1)
        self._changed(name)
        return [subject.identity]

    def withdraw(self, name: str, subject: Subject) -> list[int]:
        node = self._nodes.get(name)
        if node is None or subject not in node.present:
            return []
        node.present.discard(subject)
        return self._drop(name, (subject,))

    def disconnect(self, name: str) -> None:
        node = self._nodes.get(name)
        if node is not None:
            node.earlier |= node.present
            node.present.clear()

    def settle(self, name: str) -> list[int]:
        """The node has declared all that it has: what is left from earlier is gone."""
        node = self._nodes.get(name)
        if node is None or not node.earlier:
            return []
        gone = tuple(node.earlier)
        node.earlier.clear()
        return self._drop(name, gone)

    def replace(self, name: str, subjects: Iterable[Subject]) -> list[int]:
        """The store's word on a node that is not connected here: all that it declares."""
        node = self._nodes.setdefault(name, _Node())
        before, after = node.all(), frozenset(subjects)
        node.present.clear()
        node.earlier = set(after)
        if not after:
            del self._nodes[name]
        for subject in after - before:
            self._count(subject, 1)
        for subject in before - after:
            self._count(subject, -1)
        return list(dict.fromkeys(subject.identity for subject in before ^ after))

    def forget_node(self, name: str) -> list[int]:
        node = self._nodes.pop(name, None)
        return self._drop(name, tuple(node.all())) if node is not None else []

    def forget_identity(self, number: int) -> None:
        """The identity is gone; what nodes that are away said of it is void."""
        for name, node in self._nodes.items():
            gone = {subject for subject in node.earlier if subject.identity == number}
            node.earlier -= gone
            self._drop(name, gone)

    def _drop(self, name: str, subjects: Iterable[Subject]) -> list[int]:
        numbers: dict[int, None] = {}
        for subject in subjects:
            self._count(subject, -1)
            numbers[subject.identity] = None
        if numbers:
            self._changed(name)
        return list(numbers)

    def _count(self, subject: Subject, step: int) -> None:
        counted = self._of.setdefault(subject.identity, {})
        counted[subject] = counted.get(subject, 0) + step
        if not counted[subject]:
            del counted[subject]
            if not counted:
                del self._of[subject.identity]
