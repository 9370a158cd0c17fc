# SPDX-License-Identifier: Apache-2.0
"""The syntax of names in manifests, as Kubernetes and Cilium define it.

Each checker returns None for a legal name and otherwise what was expected, to complete "got X, expected …".
"""

from __future__ import annotations

import re

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_LABEL_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?\Z")
_SERVICE_NAME = re.compile(r"[A-Za-z0-9](-?[A-Za-z0-9])*\Z")

# The reserved identities that a selector can name.
RESERVED_NAMES = (
    "host",
    "world",
    "unmanaged",
    "health",
    "init",
    "remote-node",
    "kube-apiserver",
    "ingress",
    "world-ipv4",
    "world-ipv6",
)
# Those of them that are prefixes too: entities name them, label selectors do not.
WORLD_FAMILIES = {"world-ipv4": "0.0.0.0/0", "world-ipv6": "::/0"}


def namespace_problem(name: str) -> str | None:
    if len(name) <= 63 and _DNS_LABEL.match(name):
        return None
    return "a namespace name: at most 63 of a-z, 0-9 and '-', starting and ending with a letter or digit"


def object_name_problem(name: str) -> str | None:
    if len(name) <= 253 and _SUBDOMAIN.match(name):
        return None
    return (
        "an object name: at most 253 of a-z, 0-9, '-' and '.', "
        "each part starting and ending with a letter or digit"
    )


def label_key_problem(key: str) -> str | None:
    """A label key without its source: an optional DNS prefix and '/', then a name of up to 63 characters."""
    prefix, slash, name = key.rpartition("/")
    if slash and not (len(prefix) <= 253 and _SUBDOMAIN.match(prefix)):
        return "a label key whose prefix (before '/') is a DNS name of at most 253 characters"
    if len(name) <= 63 and _LABEL_PART.match(name):
        return None
    return (
        "a label key whose name is 1 to 63 of A-Z, a-z, 0-9, '-', '_' and '.', "
        "starting and ending with a letter or digit"
    )


def label_value_problem(value: str) -> str | None:
    if not value or (len(value) <= 63 and _LABEL_PART.match(value)):
        return None
    return (
        "a label value: empty, or at most 63 of A-Z, a-z, 0-9, '-', '_' and '.', "
        "starting and ending with a letter or digit"
    )


def port_name_problem(name: str, *, lower_case: bool) -> str | None:
    """An IANA service name (RFC 6335); Cilium folds case, Kubernetes insists on lower case."""
    legal = (
        1 <= len(name) <= 15
        and _SERVICE_NAME.match(name) is not None
        and any(c.isalpha() for c in name)
        and not (lower_case and name != name.lower())
    )
    if legal:
        return None
    letters = "a-z" if lower_case else "A-Z, a-z"
    return (
        f"a port number from 1 to 65535 or a port name: at most 15 of {letters}, 0-9 and single '-' inside, "
        "with at least one letter"
    )
