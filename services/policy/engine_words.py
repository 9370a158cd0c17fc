# SPDX-License-Identifier: Apache-2.0
"""Keys and values of entries as integers, as the engine keeps them.

A column is a key without its identity; a key is the column with the identity below it. A claim is one rule's
word on a key, made so that the lowest of several decides: by order, then denying before passing before
allowing, then by cookie.
"""

from __future__ import annotations

from services.policy.entries import EntryValue, PortKey
from services.policy.rules import Direction, Rule

IDENTITY_BITS = 24
IDENTITY_MASK = (1 << IDENTITY_BITS) - 1

# Comes after all claims.
NOBODY = 1 << 70

_DENY, _PASS, _ALLOW = 0, 1, 2
_COOKIE_BITS = 32
_COOKIE_MASK = (1 << _COOKIE_BITS) - 1
_ORDER_SHIFT = _COOKIE_BITS + 2


def column_of(direction: Direction, space: int, port: PortKey) -> int:
    return (((space << 1 | direction) << 8 | port.protocol) << 16 | port.port) << 5 | port.prefix


def split_column(column: int) -> tuple[int, int, int, int, int]:
    """(direction, protocol, port, prefix, space)."""
    head = column >> 29
    return head & 1, column >> 21 & 0xFF, column >> 5 & 0xFFFF, column & 0x1F, head >> 1


def claim_of(rule: Rule, cookie: int) -> int:
    action = _DENY if rule.deny else _PASS if rule.passes else _ALLOW
    return rule.order << _ORDER_SHIFT | action << _COOKIE_BITS | cookie


def value_of(claim: int) -> EntryValue:
    action = claim >> _COOKIE_BITS & 3
    return EntryValue(action == _DENY, claim & _COOKIE_MASK, action == _PASS, claim >> _ORDER_SHIFT)


WIDENS, NARROWS = 1, 2


def moves(before: int, after: int, *, idle: bool) -> int:
    """Which way verdicts may move when one claim gives way to another: WIDENS and NARROWS, or both.

    `idle`: what is allowed passes without being allowed as well.
    """
    old, new = before >> _COOKIE_BITS, after >> _COOKIE_BITS
    if old == new:
        return 0
    was = None if before == NOBODY else old & 3
    now = None if after == NOBODY else new & 3
    if _PASS in (was, now):
        # The next tier decides: whatever it says.
        return WIDENS | NARROWS
    if was == now:
        # The same with another order: the sooner the stronger.
        return WIDENS if (new < old) == (now == _ALLOW) else NARROWS
    if idle and _DENY not in (was, now):
        return 0
    return WIDENS if was == _DENY or now == _ALLOW else NARROWS
