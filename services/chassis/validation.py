"""Requests held against the constraints that their protos declare (protovalidate)."""

from __future__ import annotations

from typing import Any, Final

import protovalidate
from google.protobuf.message import Message

from services.chassis.errors import FieldViolation, InvalidArgument

SHOWN_CHARACTERS: Final = 64


def validate(request: Message) -> None:
    """Raises InvalidArgument (REQUEST_INVALID): a violation per refused field, with its value."""
    found = protovalidate.collect_violations(request)
    if not found:
        return
    violations = [
        FieldViolation(
            _path(violation.proto), f"{_shown(violation.field_value)}{_expectation(violation.proto)}"
        )
        for violation in found
    ]
    listed = "; ".join(f"{violation.field or 'request'} {violation.description}" for violation in violations)
    raise InvalidArgument(
        f"invalid request: {listed}",
        reason="REQUEST_INVALID",
        metadata={"field": violations[0].field},
        violations=violations,
    )


def _path(violation: Any) -> str:
    """``rules[2].ports["http"].number``."""
    if violation.field is None:
        return ""
    text = ""
    for element in violation.field.elements:
        text += ("." if text else "") + (element.field_name or str(element.field_number))
        if element.subscript is not None:
            value = element.subscript.value
            text += f'["{value}"]' if isinstance(value, str) else f"[{value}]"
    return text


def _shown(value: object) -> str:
    """``is 'x': ``; nothing for messages and lists, whose text would say too much or too little."""
    if not isinstance(value, str | int | float | bool):
        return ""
    text = repr(value)
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS] + "…"
    return f"is {text}: "


def _expectation(violation: Any) -> str:
    return violation.message or violation.rule_id or "is not allowed"
