# SPDX-License-Identifier: Apache-2.0
"""At which lines of a JSON text the elements of its lists begin, which Python's JSON reader does not tell."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

# Strings, with the colon that makes them field names, and brackets: whatever else there is does not matter.
_TOKEN = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?|[\[{\]}]', re.DOTALL)


@dataclass(slots=True)
class _Open:
    """A list or object that is not closed yet; `step` is its part of the path."""

    is_list: bool
    step: str
    key: str = ""
    elements: int = 0
    starts: list[int] | None = None


class JsonLines:
    """The lines of a JSON text that is known to be well formed. Reads it when it is asked first."""

    def __init__(self, text: str) -> None:
        self._text = text

    def line(self, path: str, index: int) -> int | None:
        """The line (from 1) at which object number `index` of the list at `path` begins."""
        starts = self._starts.get(path, ())
        return bisect_left(self._breaks, starts[index]) + 1 if index < len(starts) else None

    @cached_property
    def _breaks(self) -> list[int]:
        return [match.start() for match in re.finditer("\n", self._text)]

    @cached_property
    def _starts(self) -> Mapping[str, list[int]]:
        """By the path of each list of objects, where in the text they begin."""
        found: dict[str, list[int]] = {}
        stack: list[_Open] = []
        for match in _TOKEN.finditer(self._text):
            key = match[1]
            if key is not None:
                if match[2] is not None and stack:
                    stack[-1].key = key
                continue
            sign = match[0]
            if sign in "]}":
                if stack:
                    stack.pop()
                continue
            step = ""
            if stack:
                parent = stack[-1]
                if parent.is_list:
                    if parent.starts is None:
                        parent.starts = found["".join(each.step for each in stack)[1:]] = []
                    parent.starts.append(match.start())
                    step = f"[{parent.elements}]"
                    parent.elements += 1
                else:
                    step = f".{parent.key}"
            stack.append(_Open(sign == "[", step))
        return found
