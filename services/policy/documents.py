# SPDX-License-Identifier: Apache-2.0
"""Text to documents: YAML or JSON, one document or several, and `kind: List`.

YAML's silent traps are errors here: a key that stands twice in an object, aliases that blow up, dates and
other types that JSON does not have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import yaml

from services.policy.json_lines import JsonLines
from services.policy.yaml_reader import DocumentError, place, read_yaml

__all__ = ["MAX_DEPTH", "MAX_VALUES", "Document", "DocumentError", "check_value", "read_documents"]

MAX_DEPTH = 40
MAX_VALUES = 200_000
# What kubectl prints along with a List; none of it means anything here.
_LIST_METADATA = ("resourceVersion", "selfLink", "continue", "remainingItemCount")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


class _Lines(Protocol):
    def of(self, document: Document, path: str, index: int) -> int | None: ...


class _NoLines:
    def of(self, document: Document, path: str, index: int) -> int | None:
        return None


@dataclass(frozen=True, slots=True)
class Document:
    """One object. `path` is empty, or `items[2]` for an element of a List."""

    value: object
    path: str
    lines: _Lines = field(default_factory=_NoLines, compare=False, repr=False)

    def line(self, path: str) -> int | None:
        """The line of the text (from 1) at which an element of a list begins, e.g. `spec.ingress[0]`."""
        where, bracket, index = path.rpartition("[")
        return self.lines.of(self, where, int(index[:-1])) if bracket else None


@dataclass(frozen=True, slots=True)
class _YamlLines:
    """`by_list` has the lines of the elements by the `id` of the list."""

    by_list: dict[int, list[int]]

    def of(self, document: Document, path: str, index: int) -> int | None:
        value: object = document.value
        for key, number in _STEP.findall(path):
            if key and isinstance(value, dict):
                value = value.get(key)
            elif number and isinstance(value, list):
                value = value[int(number)]
            else:
                return None
        found = self.by_list.get(id(value), ())
        return found[index] if index < len(found) else None


@dataclass(frozen=True, slots=True)
class _JsonLines:
    lines: JsonLines

    def of(self, document: Document, path: str, index: int) -> int | None:
        return self.lines.line(f"{document.path}.{path}" if document.path else path, index)


def read_documents(text: str) -> list[Document]:
    """Every document of the text in order, Lists taken apart, empty documents left out. Raises
    DocumentError.
    """
    found: list[Document] = []
    budget = [MAX_VALUES]
    try:
        for value, lines in _values(text):
            if value is not None:
                _check_json(value, 0, budget)
                found.extend(_unfold(value, "", lines))
    except yaml.MarkedYAMLError as error:
        problem = error.problem or "malformed"
        raise DocumentError(place(error.problem_mark), f"not valid YAML or JSON: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DocumentError("", f"not valid YAML or JSON: {error}") from None
    if not found:
        raise DocumentError("", "no document in it, expected at least one policy")
    return found


def _values(text: str) -> Iterator[tuple[object, _Lines]]:
    """JSON is YAML, but its own reader is many times as fast; what it cannot read may still be YAML."""
    if text.lstrip()[:1] == "{":
        try:
            yield json.loads(text, object_pairs_hook=_object), _JsonLines(JsonLines(text))
            return
        except json.JSONDecodeError:
            pass
        except RecursionError:
            raise DocumentError("", f"nested more than {MAX_DEPTH} levels deep") from None
    lines: dict[int, list[int]] = {}
    for value in read_yaml(text, lines, MAX_DEPTH, MAX_VALUES):
        yield value, _YamlLines(lines)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DocumentError("", f"the field {twice[:80]!r} stands twice in one object")
    return found


def _unfold(value: object, path: str, lines: _Lines) -> Iterator[Document]:
    if isinstance(value, dict) and value.get("apiVersion") == "v1" and value.get("kind") == "List":
        prefix = f"{path}." if path else ""
        items = value.get("items")
        if not isinstance(items, list) or not items:
            raise DocumentError(f"{prefix}items", "expected a list with at least one policy")
        for key in value:
            if key not in ("apiVersion", "kind", "metadata", "items"):
                raise DocumentError(f"{prefix}{key[:80]}", "no such field in a List")
        metadata = value.get("metadata")
        if metadata is not None and not isinstance(metadata, dict):
            raise DocumentError(f"{prefix}metadata", "expected an object")
        for key in metadata or ():
            if key not in _LIST_METADATA:
                raise DocumentError(f"{prefix}metadata.{key[:80]}", "no such field in a List")
        for index, item in enumerate(items):
            yield from _unfold(item, f"{prefix}items[{index}]", lines)
    else:
        yield Document(value, path, lines)


def check_value(value: object) -> None:
    """Refuse what a document cannot hold, in a value that did not come as text. Raises DocumentError."""
    _check_json(value, 0, [MAX_VALUES])


def _check_json(value: object, depth: int, budget: list[int]) -> None:
    """Refuse what JSON, the store or a gRPC message cannot hold. Aliases are shared objects, counted as
    often as they appear.
    """
    budget[0] -= 1
    if depth > MAX_DEPTH:
        raise DocumentError("", f"nested more than {MAX_DEPTH} levels deep")
    if budget[0] < 0:
        raise DocumentError("", f"more than {MAX_VALUES} values")
    step = ""
    try:
        if isinstance(value, str):
            if not value.isascii() and (problem := _text_problem(value)):
                raise DocumentError("", problem)
        elif isinstance(value, dict):
            for key, item in value.items():
                step = f".{key}"
                if not key.isascii() and (problem := _text_problem(key)):
                    step = ""
                    raise DocumentError("", f"a field name with {problem}")
                _check_json(item, depth + 1, budget)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                step = f"[{index}]"
                _check_json(item, depth + 1, budget)
        elif isinstance(value, float):
            if value != value or value in (float("inf"), float("-inf")):
                raise DocumentError("", f"{value!r} is not a number that JSON has")
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise DocumentError("", "a whole number of more than 64 bits")
    except DocumentError as error:
        # The path is put together on the way back only, and only its beginning is kept.
        where = (step + error.where)[:200]
        raise DocumentError(where if depth else where.removeprefix("."), error.problem) from None


def _text_problem(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, which is no character"
    return None
