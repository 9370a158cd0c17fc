# SPDX-License-Identifier: Apache-2.0
"""Random changes: of values, field names, types and structure, and of the text itself."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import yaml

from tests.fuzz.manifests.seeds import seeds

_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    255,
    256,
    65535,
    65536,
    2**31,
    2**63,
    2**64,
    10**30,
    1.5,
    80.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    " ",
    "0",
    "00",
    "80",
    "-1",
    "0x50",
    "65536",
    "9" * 5000,
    "x" * 300,
    "a" * 64,
    "true",
    "null",
    "ANY",
    "TCP",
    "tcp",
    "ICMP",
    "EchoRequest",
    "Exists",
    "10.0.0.0/8",
    "10.0.0.1/8",
    "10.0.0.0/33",
    "10.0.0.0/255.0.0.0",
    "010.0.0.0/8",
    "0.0.0.0/0",
    "::/0",
    "::ffff:10.0.0.0/104",
    "fe80::1%eth0/64",
    "reserved:host",
    "reserved:world-ipv4",
    "cidr:10.0.0.0/8",
    "k8s:",
    ":",
    "/",
    "a/b/c",
    "-",
    "\u0000",
    "\u00e9",
    "\u0661\u0662",
    "\ud800",
    "\U0001f600",
    "\u2028",
    "a\nb",
    [],
    {},
    [None],
    [[]],
    [{}],
    {"": None},
    {"a": {"b": ["c"]}},
    {"matchLabels": {"a": "b"}},
)
_TEXT = (
    "\x00",
    "\t",
    "\n",
    "\n---\n",
    "\n...\n",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    ": ",
    "- ",
    "? ",
    "#",
    "'",
    '"',
    "\\",
    "\\u0000",
    "\\ud800",
    "|\n",
    ">\n",
    "&a ",
    "*a",
    "<<: *a",
    "!!int ",
    "!!binary ",
    "!!timestamp ",
    "!!set ",
    "!!python/name:os ",
    "! ",
    "~",
    "=",
    "0x",
    "1e9",
    "1:30",
    "2026-01-01",
    "\ufeff",
    "\u2028",
    "\u00e9",
    "[" * 60,
    "{a: " * 60,
    "%YAML 1.1\n---\n",
    "%TAG ! x\n---\n",
)
_MAX_TEXT = 100_000

Path = tuple[str | int, ...]


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every value within, the outermost first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


@cache
def _names() -> tuple[str, ...]:
    """Every field name of the manifests to begin with."""
    found = {step for seed in seeds() for path in places(seed) for step in path if isinstance(step, str)}
    return tuple(sorted(found))


def _replace(rng: random.Random, holder: Any, key: Any) -> None:
    holder[key] = copy.deepcopy(rng.choice(_VALUES))


def _borrow(rng: random.Random, holder: Any, key: Any) -> None:
    """Another value of the same field name, or any other value, out of some manifest."""
    other = rng.choice(seeds())
    paths = list(places(other))
    alike = [path for path in paths if path and path[-1] == key]
    holder[key] = copy.deepcopy(at(other, rng.choice(alike or paths)))


def _remove(rng: random.Random, holder: Any, key: Any) -> None:
    del holder[key]


def _rename(rng: random.Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        value = holder.pop(key)
        name = rng.choice(
            (rng.choice(_names()), key.swapcase(), key + "s", key[:-1], key + " ", f"\ud800{key}")
        )
        holder[name] = value
    else:
        holder.insert(rng.randrange(len(holder) + 1), holder.pop(key))


def _add(rng: random.Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[rng.choice(_names())] = copy.deepcopy(rng.choice(_VALUES))
    else:
        holder.insert(key, copy.deepcopy(rng.choice((*_VALUES, holder[key]))))


def _retype(rng: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    wrapped: list[Any] = [[value], {"a": value}, str(value), json.dumps(value, default=str)]
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        wrapped.append(int(value))
    if isinstance(value, list):
        wrapped.append({str(index): item for index, item in enumerate(value)})
    if isinstance(value, dict):
        wrapped.append(list(value.values()))
    holder[key] = rng.choice(wrapped)


def _repeat(rng: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    if isinstance(value, list):
        value *= rng.choice((0, 2, 3, 50))
        del value[300:]
    elif isinstance(value, str):
        holder[key] = value * rng.choice((0, 2, 40))
    else:
        for _ in range(rng.choice((1, 5, 45))):
            holder[key] = [holder[key]]


_CHANGES: tuple[Callable[[random.Random, Any, Any], None], ...] = (
    _replace,
    _borrow,
    _remove,
    _rename,
    _add,
    _retype,
    _repeat,
)


def changed_value(rng: random.Random, seed: Any, changes: int) -> Any:
    """A manifest as a value, with so many changes."""
    value = copy.deepcopy(seed)
    for _ in range(changes):
        paths = [path for path in places(value) if path]
        if not paths:
            break
        path = rng.choice(paths)
        rng.choice(_CHANGES)(rng, at(value, path[:-1]), path[-1])
    return value


def written(rng: random.Random, values: list[Any]) -> str:
    """The manifests as text, in one of the forms that users have."""
    form = rng.randrange(4)
    if form == 0 and len(values) == 1:
        return json.dumps(values[0], indent=rng.choice((None, 1, 4)))
    if form == 1:
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": values}, indent=rng.choice((None, 2)))
    try:
        return str(
            yaml.safe_dump_all(values, default_flow_style=rng.choice((None, True, False)), allow_unicode=True)
        )
    except (yaml.YAMLError, UnicodeError):
        # YAML has no way to write some characters.
        return "\n---\n".join(json.dumps(value) for value in values)


def changed_text(rng: random.Random, text: str) -> str:
    """The text with some of it taken out, put in, moved or repeated."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        first, last = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        last = min(last, first + rng.choice((1, 3, 20, 400)))
        piece = text[first:last]
        middle = rng.choice(
            (
                "",
                rng.choice(_TEXT),
                rng.choice(_TEXT) + piece,
                piece * 2,
                piece * 30,
                piece[::-1],
                chr(rng.randrange(256)),
            )
        )
        text = (text[:first] + middle + text[last:])[:_MAX_TEXT]
    if rng.random() < 0.1:
        text = text[: rng.randrange(len(text) + 1)]
    return text


def candidate(rng: random.Random) -> str:
    """A text that may or may not be legal manifests."""
    values = [
        changed_value(rng, rng.choice(seeds()), rng.choice((0, 1, 1, 1, 2, 3, 8)))
        for _ in range(rng.choice((1, 1, 1, 2, 3)))
    ]
    text = written(rng, values)
    return changed_text(rng, text) if rng.random() < 0.3 else text
