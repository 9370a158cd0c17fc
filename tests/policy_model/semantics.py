# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/policy-semantics.md, as data.

What counts in the page: fenced blocks (`yaml` begins anew, `yaml then` comes on top, `yaml refused` is
followed by a list of paths), tables by their headers, and lines that begin with `Then` or `With the mode`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "policy-semantics.md"

_LABELLED = re.compile(r"Then (pod|namespace) `([^`]+)` has the labels `([^`]*)`:")
_DELETED = re.compile(r"Then `(\w+) ([^`]+)` is deleted:")
_MODE = re.compile(r"With the mode `(\w+)`:")


@dataclass(frozen=True)
class Block:
    """Manifests; `how` is empty, `then` or `refused`."""

    how: str
    text: str
    line: int


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    line: int


@dataclass(frozen=True)
class Labelled:
    """`what`, a pod or a namespace, has other labels from here on."""

    what: str
    name: str
    labels: dict[str, str]


@dataclass(frozen=True)
class Deleted:
    kind: str
    name: str


@dataclass(frozen=True)
class Mode:
    name: str


@dataclass(frozen=True)
class Paths:
    """The paths that the block before is refused for."""

    paths: tuple[str, ...]


Part = Block | Table | Labelled | Deleted | Mode | Paths


def labels_of(text: str) -> dict[str, str]:
    """`app=web, tier=one`."""
    return dict(pair.strip().split("=", 1) for pair in text.split(",") if pair.strip())


def parts(text: str) -> Iterator[Part]:
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("```yaml"):
            end = lines.index("```", at)
            yield Block(line.removeprefix("```yaml").strip(), "\n".join(lines[at + 1 : end]), at + 1)
            at = end
        elif line.startswith("|"):
            end = next(
                i for i in range(at, len(lines) + 1) if i == len(lines) or not lines[i].startswith("|")
            )
            rows = [_cells(row) for row in lines[at:end]]
            yield Table(rows[0], tuple(rows[2:]), at + 1)
            at = end - 1
        elif line.startswith("- `spec"):
            end = next(
                i for i in range(at, len(lines) + 1) if i == len(lines) or not lines[i].startswith("- ")
            )
            yield Paths(tuple(row.removeprefix("- ").strip("`") for row in lines[at:end]))
            at = end - 1
        elif found := _LABELLED.match(line):
            yield Labelled(found[1], found[2], labels_of(found[3]))
        elif found := _DELETED.match(line):
            yield Deleted(found[1], found[2])
        elif found := _MODE.match(line):
            yield Mode(found[1])
        at += 1


def _cells(row: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in row.strip().strip("|").split("|"))


def sections() -> dict[str, list[Part]]:
    """The page's parts by the heading that they stand under."""
    found: dict[str, list[Part]] = {}
    for section in re.split(r"^(?=##+ )", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        title = section.splitlines()[0].lstrip("# ")
        found[title] = list(parts(section))
    return found
