"""Security-relevant labels: parse, validate, sort.

A label is written ``source:key=value`` (``k8s:app=web``); a reserved or CIDR label has no value
(``reserved:host``, ``cidr:10.0.0.0/8``). Keys and values follow the rules of Kubernetes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn, Self

from services.chassis.errors import FieldViolation, InvalidArgument

SOURCE_K8S = "k8s"
SOURCE_RESERVED = "reserved"
SOURCE_CIDR = "cidr"
SOURCE_ANY = "any"

NAMESPACE_KEY = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS_PREFIX = "io.cilium.k8s.namespace.labels."
NAMESPACE_NAME_KEY = "kubernetes.io/metadata.name"
SERVICE_ACCOUNT_KEY = "io.cilium.k8s.policy.serviceaccount"
CLUSTER_KEY = "io.cilium.k8s.policy.cluster"
# What Cilium calls a cluster that is connected to no other.
CLUSTER_NAME = "default"

_SOURCE = re.compile(r"[a-z][a-z0-9-]{0,31}")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VALUELESS = frozenset({SOURCE_RESERVED, SOURCE_CIDR})


@dataclass(frozen=True, slots=True, order=True)
class Label:
    """One label; ``value`` is empty for reserved and CIDR labels."""

    source: str
    key: str
    value: str = ""

    def format(self) -> str:
        """``source:key=value``, or ``source:key`` where the source's labels have no value."""
        if self.source in _VALUELESS and not self.value:
            return f"{self.source}:{self.key}"
        return f"{self.source}:{self.key}={self.value}"

    def __str__(self) -> str:
        return self.format()


class LabelSet(tuple[str, ...]):
    """Formatted labels, validated, sorted, without repetition: equal sets compare and hash equal.

    Raises InvalidArgument (LABEL_INVALID, LABEL_CONFLICT) when a label is malformed or a key has two values.
    """

    __slots__ = ()

    def __new__(cls, labels: Iterable[str | Label] = ()) -> Self:
        found: dict[tuple[str, str], Label] = {}
        for item in labels:
            label = item if isinstance(item, Label) else parse_label(item)
            other = found.setdefault((label.source, label.key), label)
            if other != label:
                problem = f"has two values, {other.value!r} and {label.value!r}; expected one"
                _refuse(f"{label.source}:{label.key}", problem, reason="LABEL_CONFLICT")
        return super().__new__(cls, sorted(label.format() for label in found.values()))

    def parsed(self) -> tuple[Label, ...]:
        """The labels in parts, in the same order."""
        return tuple(_split(text) for text in self)

    def get(self, key: str, source: str = SOURCE_K8S) -> str | None:
        """The value of a key, or None; source ``any`` looks through all sources."""
        for label in self.parsed():
            if label.key == key and source in (label.source, SOURCE_ANY):
                return label.value
        return None


def parse_label(text: str) -> Label:
    """Parses and validates ``source:key=value``. Raises InvalidArgument (LABEL_INVALID)."""
    label = _split(text)
    if not _SOURCE.fullmatch(label.source):
        _refuse(text, "has no source; expected source:key=value, for example k8s:app=web")
    if label.source == SOURCE_CIDR:
        _check_cidr(text, label)
    elif label.source == SOURCE_RESERVED:
        if label.value or not _DNS_LABEL.fullmatch(label.key):
            _refuse(text, "is not a reserved label; expected reserved:NAME, for example reserved:host")
    else:
        check_key(label.key, text)
        check_value(label.value, text)
    return label


def format_label(source: str, key: str, value: str = "") -> str:
    """The text of a label that has been validated before."""
    return Label(source, key, value).format()


def check_key(key: str, shown: str = "") -> None:
    """Raises InvalidArgument unless ``key`` is ``[dns.sub.domain/]name``, the name up to 63 characters."""
    # A namespace label nests a whole key, prefix included, behind Cilium's; the nested key is what counts.
    inner = key.removeprefix(NAMESPACE_LABELS_PREFIX)
    prefix, slash, name = inner.rpartition("/")
    if slash and (len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix)):
        _refuse(
            shown or key, f"has the key prefix {prefix!r}; expected a DNS subdomain of up to 253 characters"
        )
    if not _NAME.fullmatch(name):
        _refuse(
            shown or key,
            f"has the key {inner!r}; expected up to 63 characters of [A-Za-z0-9_.-], "
            "alphanumeric at both ends, with an optional DNS prefix and a slash",
        )


def check_value(value: str, shown: str = "") -> None:
    """Raises InvalidArgument unless ``value`` is empty or up to 63 characters of [A-Za-z0-9_.-]."""
    if value and not _NAME.fullmatch(value):
        _refuse(
            shown or value,
            f"has the value {value!r}; expected up to 63 characters of [A-Za-z0-9_.-], "
            "alphanumeric at both ends",
        )


def pod_labels(
    namespace: str,
    labels: Mapping[str, str],
    namespace_labels: Mapping[str, str],
    service_account: str = "",
) -> LabelSet:
    """The label set of a pod: its own labels, its service account's and its cluster's, its namespace, and its
    namespace's labels.

    A pod label that would stand for a namespace or another cluster is refused: whoever may label a pod must
    not be able to move it into another namespace's policy. So is one of another service account.
    """
    if not _DNS_LABEL.fullmatch(namespace):
        raise InvalidArgument(
            f"namespace {namespace!r} is not a DNS label of up to 63 characters",
            reason="NAMESPACE_INVALID",
            metadata={"namespace": namespace},
            violations=[
                FieldViolation("namespace", f"{namespace!r}: expected a DNS label of up to 63 characters")
            ],
        )
    found: list[Label] = []
    for key, value in labels.items():
        if key == CLUSTER_KEY and value != CLUSTER_NAME:
            _refuse(f"{key}={value}", f"is reserved; the cluster's name is {CLUSTER_NAME!r}")
        if key == NAMESPACE_KEY or key.startswith(NAMESPACE_LABELS_PREFIX):
            _refuse(f"{key}={value}", "is reserved; a pod's namespace labels come from its namespace")
        found.append(_checked(key, value, ""))
    for key, value in {**namespace_labels, NAMESPACE_NAME_KEY: namespace}.items():
        found.append(_checked(key, value, NAMESPACE_LABELS_PREFIX))
    found.append(Label(SOURCE_K8S, NAMESPACE_KEY, namespace))
    found.append(Label(SOURCE_K8S, CLUSTER_KEY, CLUSTER_NAME))
    if service_account:
        found.append(_checked(SERVICE_ACCOUNT_KEY, service_account, ""))
    return LabelSet(found)


def prefix_labels(prefix: str) -> LabelSet:
    """The label set of a prefix outside the cluster, in canonical text: its own label and those of the world.

    Raises InvalidArgument (LABEL_INVALID).
    """
    family = "world-ipv6" if ":" in prefix else "world-ipv4"
    return LabelSet(
        (Label(SOURCE_CIDR, prefix), Label(SOURCE_RESERVED, "world"), Label(SOURCE_RESERVED, family))
    )


def _checked(key: str, value: str, prefix: str) -> Label:
    check_key(key, f"{key}={value}")
    check_value(value, f"{key}={value}")
    return Label(SOURCE_K8S, prefix + key, value)


def _split(text: str) -> Label:
    source, colon, rest = text.partition(":")
    if not colon or "=" in source:
        return Label("", text)
    key, _, value = rest.partition("=")
    return Label(source, key, value)


def _check_cidr(text: str, label: Label) -> None:
    try:
        # Cilium writes an IPv6 prefix with dashes in the place of colons; here both will do.
        ipaddress.ip_network(label.key.replace("-", ":"), strict=True)
    except ValueError:
        _refuse(text, "is not a CIDR label; expected cidr:PREFIX, for example cidr:10.0.0.0/8")
    if label.value:
        _refuse(text, "has a value; a CIDR label has none")


def _refuse(label: str, problem: str, *, reason: str = "LABEL_INVALID") -> NoReturn:
    raise InvalidArgument(
        f"label {label!r} {problem}",
        reason=reason,
        metadata={"label": label},
        violations=[FieldViolation("labels", f"{label!r} {problem}")],
    )
