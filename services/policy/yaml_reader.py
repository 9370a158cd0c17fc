# SPDX-License-Identifier: Apache-2.0
"""YAML text to the values that JSON has, in one pass over the parser's events, with the lines of list items.

PyYAML's own constructors recurse natively, raise whatever comes when a tag does not fit its scalar, keep
the last of two equal keys without a word, and read `12:30` as 750. All of these are errors with a place here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.resolver import Resolver

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_BOOLEANS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_INTEGER_DIGITS = 20
_NO_KEY = object()


class DocumentError(Exception):
    """The text cannot be read; `where` says where (line and column, or a field path), `problem` what is
    wrong.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}" if where else problem)
        self.where = where
        self.problem = problem


def place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def read_yaml(text: str, lines: dict[int, list[int]], max_depth: int, max_values: int) -> Iterator[object]:
    """The value of each document; an empty one is None. `lines` gets, by the `id` of each list, the lines
    (from 1) at which its elements begin. Raises DocumentError and yaml.YAMLError.
    """
    builder = _Builder(lines, max_depth, max_values)
    for event in yaml.parse(text, Loader=_Loader):
        kind = type(event)
        if kind is yaml.ScalarEvent:
            builder.scalar(event)
        elif kind is yaml.MappingStartEvent:
            builder.start({}, event)
        elif kind is yaml.SequenceStartEvent:
            builder.start([], event)
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            builder.stack.pop()
        elif kind is yaml.AliasEvent:
            builder.alias(event)
        elif kind is yaml.DocumentStartEvent:
            builder.reset()
        elif kind is yaml.DocumentEndEvent:
            yield builder.root


def _bad_tag(event: Any) -> DocumentError:
    return DocumentError(
        place(event.start_mark),
        f"not valid YAML here: the tag {event.tag[:80]!r} is not accepted; leave it out",
    )


class _Builder:
    def __init__(self, lines: dict[int, list[int]], max_depth: int, max_values: int) -> None:
        self.lines = lines
        self.max_depth = max_depth
        self.max_values = max_values
        self.values = 0
        self.resolver: Any = Resolver()
        self.plain: dict[str, object] = {}
        self.reset()

    def reset(self) -> None:
        """Begin a document: anchors do not reach beyond one."""
        self.root: object = None
        self.anchors: dict[str, object] = {}
        # Of each open collection: itself, and the field name that waits for its value.
        self.stack: list[list[Any]] = []

    def start(self, collection: dict[str, object] | list[object], event: Any) -> None:
        if event.tag is not None and event.tag not in (_TAG + "map", _TAG + "seq"):
            raise _bad_tag(event)
        self.add(collection, event)
        if type(collection) is list:
            # A list that is gone may have had the same id.
            self.lines[id(collection)] = []
        if event.anchor is not None:
            self.anchors[event.anchor] = collection
        self.stack.append([collection, _NO_KEY])
        if len(self.stack) > self.max_depth:
            raise DocumentError(place(event.start_mark), f"nested more than {self.max_depth} levels deep")

    def alias(self, event: Any) -> None:
        if event.anchor not in self.anchors:
            raise DocumentError(
                place(event.start_mark), f"not valid YAML: there is no anchor {event.anchor[:80]!r}"
            )
        self.add(self.anchors[event.anchor], event)

    def scalar(self, event: Any) -> None:
        value = self.scalar_value(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = value
        stack = self.stack
        if stack and stack[-1][1] is _NO_KEY and type(stack[-1][0]) is dict:
            if not isinstance(value, str):
                raise DocumentError(
                    place(event.start_mark), f"the field name {event.value[:80]} is not a string; quote it"
                )
            if value in stack[-1][0]:
                raise DocumentError(
                    place(event.start_mark), f"the field {value[:80]!r} stands twice in one object"
                )
            stack[-1][1] = value
            return
        self.add(value, event)

    def add(self, value: object, event: Any) -> None:
        """Put a value where it belongs: into the innermost open collection, or at the top."""
        self.values += 1
        if self.values > self.max_values:
            raise DocumentError("", f"more than {self.max_values} values")
        if not self.stack:
            self.root = value
            return
        top = self.stack[-1]
        parent = top[0]
        if type(parent) is list:
            parent.append(value)
            self.lines[id(parent)].append(event.start_mark.line + 1)
        elif top[1] is _NO_KEY:
            raise DocumentError(place(event.start_mark), "expected a plain field name")
        else:
            parent[top[1]] = value
            top[1] = _NO_KEY

    def scalar_value(self, event: Any) -> object:
        text: str = event.value
        if event.tag is None or event.tag == "!":
            if not event.implicit[0]:
                return text
            try:
                return self.plain[text]
            except KeyError:
                found = self.plain[text] = self.plain_value(text, event)
                return found
        if event.tag != _TAG + "str":
            raise _bad_tag(event)
        return text

    def plain_value(self, text: str, event: Any) -> object:
        """What a scalar without quotes means by YAML 1.1, as kubectl reads it."""
        tag: str = self.resolver.resolve(yaml.ScalarNode, text, (True, False)).removeprefix(_TAG)
        if tag == "null":
            return None
        if tag == "bool":
            return _BOOLEANS[text.lower()]
        if tag == "int":
            if _DECIMAL.match(text) and len(text) <= _INTEGER_DIGITS:
                return int(text)
            raise DocumentError(
                place(event.start_mark), f"{text[:40]} is no plain decimal number; quote it if it is text"
            )
        if tag == "float":
            try:
                return float(text.replace(".inf", "inf").replace(".nan", "nan").lower())
            except ValueError:
                raise DocumentError(
                    place(event.start_mark), f"{text[:40]} is no plain number; quote it if it is text"
                ) from None
        if tag == "timestamp":
            raise DocumentError(
                place(event.start_mark), f"the date {text} where JSON has no such type; quote the value"
            )
        if tag == "merge":
            raise DocumentError(
                place(event.start_mark), "merge keys (<<) are not accepted; write the fields out"
            )
        return text
