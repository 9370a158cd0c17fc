# SPDX-License-Identifier: Apache-2.0
"""Text to documents: YAML or JSON, one document or several, and `kind: List`.

YAML's silent traps are errors here: a key that stands twice in an object, aliases that blow up, dates and
other types that JSON does not have.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_DEPTH = 40
MAX_VALUES = 200_000


class DocumentError(Exception):
    """The text cannot be read; `where` says where (line and column, or a field path), `problem` what is
    wrong.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}" if where else problem)
        self.where = where
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Document:
    """One object. `path` is empty, or `items[2]` for an element of a List."""

    value: object
    path: str


class _Loader(_BaseLoader):  # type: ignore[misc]
    """PyYAML keeps the last of two equal keys without a word; this refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise DocumentError(
                    _place(key.start_mark), "merge keys (<<) are not accepted; write the fields out"
                )
            if not isinstance(key, yaml.ScalarNode):
                raise DocumentError(_place(key.start_mark), "expected a plain field name")
            if key.value in seen:
                raise DocumentError(
                    _place(key.start_mark), f"the field {key.value!r} stands twice in one object"
                )
            seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


# SafeConstructor builds mappings through a generator that calls construct_mapping, so nothing else is to
# register.


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def read_documents(text: str) -> list[Document]:
    """Every document of the text in order, Lists taken apart, empty documents left out. Raises
    DocumentError.
    """
    found: list[Document] = []
    budget = [MAX_VALUES]
    try:
        for value in _values(text):
            if value is not None:
                _check_json(value, "", 0, budget)
                found.extend(_unfold(value, ""))
    except yaml.MarkedYAMLError as error:
        problem = error.problem or "malformed"
        raise DocumentError(_place(error.problem_mark), f"not valid YAML or JSON: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DocumentError("", f"not valid YAML or JSON: {error}") from None
    if not found:
        raise DocumentError("", "no document in it, expected at least one policy")
    return found


def _values(text: str) -> Iterator[object]:
    """JSON is YAML, but its own reader is twenty times as fast; what it cannot read may still be YAML."""
    if text.lstrip()[:1] == "{":
        try:
            yield json.loads(text, object_pairs_hook=_object)
            return
        except json.JSONDecodeError:
            pass
        except RecursionError:
            raise DocumentError("", f"nested more than {MAX_DEPTH} levels deep") from None
    _check_nesting(text)
    yield from yaml.load_all(text, Loader=_Loader)


def _check_nesting(text: str) -> None:
    """The loader recurses natively, and text that nests deeply enough would end the process."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.NodeEvent):
            values += 1
        if depth > MAX_DEPTH:
            raise DocumentError(_place(event.start_mark), f"nested more than {MAX_DEPTH} levels deep")
        if values > 2 * MAX_VALUES:
            raise DocumentError("", f"more than {MAX_VALUES} values")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DocumentError("", f"the field {twice!r} stands twice in one object")
    return found


def _unfold(value: object, path: str) -> Iterator[Document]:
    if isinstance(value, dict) and value.get("apiVersion") == "v1" and value.get("kind") == "List":
        prefix = f"{path}." if path else ""
        items = value.get("items")
        if not isinstance(items, list) or not items:
            raise DocumentError(f"{prefix}items", "expected a list with at least one policy")
        for key in value:
            if key not in ("apiVersion", "kind", "metadata", "items"):
                raise DocumentError(f"{prefix}{key}", "no such field in a List")
        for index, item in enumerate(items):
            yield from _unfold(item, f"{prefix}items[{index}]")
    else:
        yield Document(value, path)


def _check_json(value: object, path: str, depth: int, budget: list[int]) -> None:
    """Refuse what JSON cannot say. Aliases are shared objects, counted as often as they appear."""
    budget[0] -= 1
    if depth > MAX_DEPTH:
        raise DocumentError(path[:80], f"nested more than {MAX_DEPTH} levels deep")
    if budget[0] < 0:
        raise DocumentError("", f"more than {MAX_VALUES} values")
    if isinstance(value, dict):
        for key, item in value.items():
            where = f"{path}.{key}" if path else str(key)
            if not isinstance(key, str):
                raise DocumentError(where, f"the field name {key!r} is not a string; quote it")
            _check_json(item, where, depth + 1, budget)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_json(item, f"{path}[{index}]", depth + 1, budget)
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise DocumentError(path, f"{value!r} is not a number that JSON has")
    elif value is not None and not isinstance(value, str | bool | int):
        raise DocumentError(path, f"a {type(value).__name__} where JSON has no such type; quote the value")
