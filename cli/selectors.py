"""Label selectors as `kubectl -l` takes them: `app=web,tier in (a,b),!canary`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cli.errors import BadInput

if TYPE_CHECKING:
    from fimbria.ipam.v1 import ipam_pb2

_KEY = r"[A-Za-z0-9](?:[A-Za-z0-9_./-]*[A-Za-z0-9])?"
_VALUE = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_EQUAL = re.compile(rf"({_KEY})\s*(==|=|!=)\s*({_VALUE})?")
_AMONG = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)")
_THERE = re.compile(rf"(!?)\s*({_KEY})")
_COMMA = re.compile(r",(?![^()]*\))")


def parse_selector(text: str, option: str) -> ipam_pb2.LabelSelector:
    """The selector written as `text`; an empty one selects everything. Raises BadInput naming `option`."""
    from fimbria.ipam.v1 import ipam_pb2

    selector = ipam_pb2.LabelSelector()
    for part in (part.strip() for part in _COMMA.split(text) if text.strip()):
        if match := _EQUAL.fullmatch(part):
            key, operator, value = match[1], match[2], match[3] or ""
            if operator == "!=":
                selector.match_expressions.add(key=key, operator="NotIn", values=[value])
            elif selector.match_labels.get(key, value) != value:
                raise BadInput(f"{option} {text!r} is not valid: {key} cannot have two values")
            else:
                selector.match_labels[key] = value
        elif match := _AMONG.fullmatch(part):
            values = [value.strip() for value in match[3].split(",")]
            if not all(re.fullmatch(_VALUE, value) for value in values):
                raise _refused(option, text, part)
            operator = "In" if match[2] == "in" else "NotIn"
            selector.match_expressions.add(key=match[1], operator=operator, values=values)
        elif match := _THERE.fullmatch(part):
            selector.match_expressions.add(key=match[2], operator="DoesNotExist" if match[1] else "Exists")
        else:
            raise _refused(option, text, part)
    return selector


def selector_text(selector: ipam_pb2.LabelSelector) -> str:
    """The selector as `parse_selector` reads it; one that selects everything is `(everything)`."""
    parts = [f"{key}={value}" for key, value in sorted(selector.match_labels.items())]
    for one in selector.match_expressions:
        if one.operator in ("In", "NotIn"):
            parts.append(f"{one.key} {one.operator.lower()} ({','.join(one.values)})")
        else:
            parts.append(one.key if one.operator == "Exists" else f"!{one.key}")
    return ",".join(parts) or "(everything)"


def _refused(option: str, text: str, part: str) -> BadInput:
    return BadInput(
        f"{option} {text!r} is not valid: {part!r} is no requirement; expected KEY=VALUE, KEY!=VALUE,"
        " KEY in (A,B), KEY notin (A,B), KEY or !KEY, comma separated"
    )
