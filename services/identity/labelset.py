"""Label sets as identities see them: one normal form, one digest, and the reserved ones told apart.

Parsing, validation and order of labels are the chassis's (`services.chassis.labels`); what is decided
here is which sets may have an identity, and which of them has one already because it is reserved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import orjson

from services.chassis.labels import SOURCE_CIDR, SOURCE_RESERVED, LabelSet, parse_label
from services.identity.problems import invalid
from services.identity.reserved import RESERVED_NUMBERS, UNKNOWN

# Most labels of a new set are those of many others: its namespace's, its cluster's, its application's.
_parse = lru_cache(maxsize=16384)(parse_label)


def normalise(labels: Iterable[str]) -> LabelSet:
    """The label set in normal form: validated, sorted, without repeats.

    Raises InvalidArgument naming the label: malformed, a key with two values, a CIDR label (prefixes have
    a call of their own), or a reserved label that is unknown or stands beside other labels.
    """
    parsed = [_parse(text) for text in labels]
    found = LabelSet(parsed)
    for label in parsed:
        if label.source not in (SOURCE_CIDR, SOURCE_RESERVED):
            continue
        text = str(label)
        if label.source == SOURCE_CIDR:
            raise invalid(
                "labels",
                f"{text!r} is a CIDR label; expected labels of a workload (prefixes: see ResolvePrefixes)",
                reason="LABEL_UNSUPPORTED",
                label=text,
            )
        if label.source == SOURCE_RESERVED:
            if RESERVED_NUMBERS.get(label.key, UNKNOWN) == UNKNOWN:
                known = ", ".join(name for name, number in RESERVED_NUMBERS.items() if number != UNKNOWN)
                raise invalid(
                    "labels",
                    f"{text!r} is no reserved identity; expected reserved: and one of {known}",
                    reason="LABEL_INVALID",
                    label=text,
                )
            if len(found) > 1:
                raise invalid(
                    "labels",
                    f"{text!r} stands beside other labels; a reserved label is expected alone",
                    reason="LABEL_CONFLICT",
                    label=text,
                )
    return found


def reserved_number(labels: LabelSet) -> int | None:
    """The number of a reserved label set in normal form, None for any other."""
    if len(labels) != 1 or not labels[0].startswith(f"{SOURCE_RESERVED}:"):
        return None
    return RESERVED_NUMBERS[labels.parsed()[0].key]


def encode(labels: LabelSet) -> bytes:
    """The label set as the text that is stored: a JSON array."""
    return orjson.dumps(list(labels))


def digest(encoded: bytes) -> bytes:
    """32 bytes that stand for a label set, from its encoded form."""
    return hashlib.sha256(encoded).digest()
