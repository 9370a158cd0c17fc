# SPDX-License-Identifier: Apache-2.0
"""The identities that each selector in use matches, kept up to date as identities come and go.

A selector is filed under one label that it insists on, so that a new identity is compared only with selectors
that can match it, and a new selector only with identities that have that label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from services.policy.selector import NAMESPACE_KEY, Labels, Operator, Requirement, Selector

User = TypeVar("User")


class Matched(Generic[User]):
    """A selector in use with the numbers of the identities that it matches. Compared by identity of the
    object.
    """

    __slots__ = ("identities", "selector", "users")

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.identities: set[int] = set()
        # Insertion order, so that equal histories give equal results.
        self.users: dict[User, None] = {}


class SelectorCache(Generic[User]):
    """Selectors by use. A selector is forgotten with its last user."""

    def __init__(self) -> None:
        self.identities: dict[int, Labels] = {}
        self._selectors: dict[Selector, Matched[User]] = {}
        self._by_pair: dict[tuple[str, str], set[Matched[User]]] = {}
        self._by_key: dict[str, set[Matched[User]]] = {}
        self._unfiled: set[Matched[User]] = set()
        self._having: dict[tuple[str, str], set[int]] = {}

    def use(self, selector: Selector, user: User) -> Matched[User]:
        matched = self._selectors.get(selector)
        if matched is None:
            matched = Matched(selector)
            matched.identities.update(
                number for number in self._possible(selector) if selector.matches(self.identities[number])
            )
            self._selectors[selector] = matched
            for shelf in self._shelves(selector):
                shelf.add(matched)
        matched.users[user] = None
        return matched

    def release(self, matched: Matched[User], user: User) -> None:
        matched.users.pop(user, None)
        if not matched.users and self._selectors.pop(matched.selector, None) is not None:
            for shelf in self._shelves(matched.selector):
                shelf.discard(matched)

    def changes(self, number: int, labels: Labels | None) -> list[tuple[Matched[User], bool]]:
        """What would change if the identity had these labels (None: were gone): (selector, matches then)."""
        before = self.identities.get(number)
        candidates: dict[Matched[User], None] = {}
        for known in (before, labels):
            if known is not None:
                candidates.update(dict.fromkeys(self._candidates(known)))
        found = []
        for matched in candidates:
            matches = labels is not None and matched.selector.matches(labels)
            if matches != (number in matched.identities):
                found.append((matched, matches))
        return found

    def put(self, number: int, labels: Labels | None, changes: Iterable[tuple[Matched[User], bool]]) -> None:
        """Take the labels over, with the changes that were computed for them."""
        before = self.identities.pop(number, None)
        for pair in before.pairs() if before is not None else ():
            self._having[pair].discard(number)
            if not self._having[pair]:
                del self._having[pair]
        if labels is not None:
            self.identities[number] = labels
            for pair in labels.pairs():
                self._having.setdefault(pair, set()).add(number)
        for matched, matches in changes:
            if matches:
                matched.identities.add(number)
            else:
                matched.identities.discard(number)

    def _candidates(self, labels: Labels) -> Iterator[Matched[User]]:
        yield from self._unfiled
        for key, value in labels.pairs():
            yield from self._by_key.get(key, ())
            yield from self._by_pair.get((key, value), ())

    def _shelves(self, selector: Selector) -> list[set[Matched[User]]]:
        pivot = _pivot(selector)
        if pivot is None:
            return [self._unfiled]
        if pivot.operator is Operator.EXISTS:
            return [self._by_key.setdefault(pivot.key, set())]
        return [self._by_pair.setdefault((pivot.key, value), set()) for value in pivot.values]

    def _possible(self, selector: Selector) -> Iterable[int]:
        pivot = _pivot(selector)
        if pivot is None or pivot.operator is Operator.EXISTS:
            return list(self.identities)
        return set().union(*(self._having.get((pivot.key, value), set()) for value in pivot.values))


def _pivot(selector: Selector) -> Requirement | None:
    """The requirement to file a selector under: the one that the fewest identities are likely to meet."""
    positive = [r for r in selector.requirements if r.operator in (Operator.IN, Operator.EXISTS)]
    return min(
        positive,
        key=lambda r: (r.operator is Operator.EXISTS, r.key == NAMESPACE_KEY, len(r.values)),
        default=None,
    )
