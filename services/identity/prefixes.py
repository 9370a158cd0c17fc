"""Prefixes outside the cluster that have an identity: their canonical text and their labels."""

from __future__ import annotations

import ipaddress

from services.chassis.labels import prefix_labels
from services.identity.model import Identity, reserved_identity
from services.identity.problems import invalid
from services.identity.reserved import RESERVED_PREFIXES


def check_prefix(text: str, field: str) -> str:
    """`text` itself when it is a prefix in canonical text. Raises InvalidArgument (PREFIX_INVALID) that names
    `field`; its metadata "expected" is the right text where there is one.
    """
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        network = None
    if network is None or "%" in text:
        description = f"{text!r} is not a prefix; expected one like 10.0.0.0/8 or 2001:db8::/32"
        raise invalid(field, description, reason="PREFIX_INVALID", value=text)
    expected = str(network)
    if text != expected:
        description = f"{text!r} is not in canonical form; expected {expected}"
        raise invalid(field, description, reason="PREFIX_INVALID", value=text, expected=expected)
    return text


def prefix_identity(prefix: str, number: int, revision: int) -> Identity:
    """The identity of a prefix that has this number."""
    return Identity(number, prefix_labels(prefix), revision)


def reserved_prefix(prefix: str) -> Identity | None:
    """The reserved identity of a prefix that holds a whole family; None for any other."""
    number = RESERVED_PREFIXES.get(prefix)
    return reserved_identity(number) if number is not None else None
