# SPDX-License-Identifier: Apache-2.0
"""Reading untyped manifest values, collecting every violation on the way instead of stopping at the first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

MAX_VIOLATIONS = 500
_SHOWN = 60
_PLAIN = re.compile(r"[A-Za-z0-9_-]+\Z")

Chosen = TypeVar("Chosen")


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field.

    `document` counts the documents of one call from 0; `subject` says for people which object it is
    ("NetworkPolicy shop/web"); `field` is the path inside that document, e.g.
    `spec.ingress[0].ports[1].port`; `description` states the value and what was expected. `unsupported`
    marks what is legal but not supported yet.
    """

    document: int
    subject: str
    field: str
    description: str
    unsupported: bool = False


def show(value: object) -> str:
    """The value as a reader would write it in JSON, shortened."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def type_name(value: object) -> str:
    """What JSON calls the type of a value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return f"a {type(value).__name__}"


@dataclass(slots=True)
class Report:
    """Violations of one document, in the order in which they were found, MAX_VIOLATIONS at most.

    `stored`: the document was accepted before, by a version that may have asked for less.
    """

    document: int
    subject: str = ""
    stored: bool = False
    violations: list[Violation] = field(default_factory=list)

    def add(self, path: str, description: str, *, unsupported: bool = False) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            if len(self.violations) == MAX_VIOLATIONS - 1:
                description += f"; more than {MAX_VIOLATIONS} violations, the others are left out"
            self.violations.append(Violation(self.document, self.subject, path, description, unsupported))


@dataclass(slots=True)
class Node:
    """A value with its path; every reader returns None (or nothing) after it has reported a violation.

    Never changed once made; not frozen because a big file makes hundreds of thousands of them.
    """

    value: object
    path: str
    report: Report

    def wrong(self, expected: str) -> None:
        """Report this value: `expected` completes "got X, expected …"."""
        self.report.add(self.path, f"got {show(self.value)}, expected {expected}")

    def refuse(self, reason: str) -> None:
        """Report this field as legal but beyond what is supported."""
        self.report.add(self.path, f"got {show(self.value)}: {reason}", unsupported=True)

    def mapping(self) -> Mapping[str, object] | None:
        if isinstance(self.value, dict):
            return self.value
        self.wrong(f"an object, not {type_name(self.value)}")
        return None

    def child(self, key: str) -> Node | None:
        """The field `key` of an object; None when it is absent or null, which mean the same in manifests."""
        value = self.value.get(key) if isinstance(self.value, dict) else None
        return None if value is None else Node(value, self.path_of(key), self.report)

    def required(self, key: str, what: str) -> Node | None:
        found = self.child(key)
        if found is None:
            self.report.add(self.path_of(key), f"missing, expected {what}")
        return found

    def path_of(self, key: str) -> str:
        if len(key) > _SHOWN or not (key.isidentifier() or _PLAIN.match(key)):
            return f"{self.path}[{show(key)}]"
        return f"{self.path}.{key}" if self.path else key

    def items(self) -> Iterator[Node]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            self.wrong(f"a list, not {type_name(self.value)}")
            return
        for index, value in enumerate(self.value):
            yield Node(value, f"{self.path}[{index}]", self.report)

    def text(self, expected: str) -> str | None:
        if isinstance(self.value, str):
            return self.value
        hint = "; quote it" if isinstance(self.value, bool | int | float) else ""
        self.wrong(f"{expected} as a string, not {type_name(self.value)}{hint}")
        return None

    def choice(self, known: Mapping[str, Chosen], expected: str) -> Chosen | None:
        """What the value's name stands for."""
        found = known.get(self.value) if isinstance(self.value, str) else None
        if found is None:
            self.wrong(expected)
        return found

    def one_of(self, keys: Sequence[str]) -> tuple[str, Node] | None:
        """The one field that is given of those that exclude each other."""
        given = [(key, node) for key in keys if (node := self.child(key)) is not None]
        if len(given) == 1:
            return given[0]
        got = "nothing" if not given else " and ".join(key for key, _ in given)
        self.report.add(self.path, f"got {got}, expected exactly one of {', '.join(keys)}")
        return None

    def elements(self, low: int, high: int, what: str) -> list[Node]:
        """The elements of a list that has `low` to `high` of them; none after a violation."""
        found = list(self.items())
        if isinstance(self.value, list) and not low <= len(found) <= high:
            bounds = f"{low} to {high}" if low else f"at most {high}"
            self.report.add(self.path, f"got {len(found)}, expected {bounds} {what}")
            return []
        return found

    def integer(self, low: int, high: int, what: str) -> int | None:
        if isinstance(self.value, int) and not isinstance(self.value, bool) and low <= self.value <= high:
            return self.value
        self.wrong(f"{what}, a number from {low} to {high}")
        return None

    def boolean(self) -> bool | None:
        if isinstance(self.value, bool):
            return self.value
        self.wrong("true or false")
        return None

    def only(
        self,
        known: Iterable[str],
        unsupported: Mapping[str, str] | None = None,
    ) -> bool:
        """Report fields other than `known`; those in `unsupported` with their own reason. False: not an
        object.
        """
        fields = self.mapping()
        if fields is None:
            return False
        refused = unsupported or {}
        allowed = tuple(known)
        for key, value in fields.items():
            if key in allowed:
                continue
            here = Node(value, self.path_of(key), self.report)
            if key not in refused:
                here.wrong(f"no such field here; the fields are {', '.join(allowed)}")
            elif value is not None:
                here.refuse(refused[key])
        return True
