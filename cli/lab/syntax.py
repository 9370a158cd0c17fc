"""Kubernetes' syntax for names, labels and ports; a violation names field, value and expectation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cli.errors import BadInput

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PORT_NAME = re.compile(r"[a-z0-9](-?[a-z0-9])*")
PROTOCOLS = ("TCP", "UDP", "SCTP")
# Those whose messages have a type in the place of a port.
TYPED = ("ICMP", "ICMPV6")


@dataclass(frozen=True)
class PodRef:
    """NAMESPACE/NAME of a pod."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class NamedPort:
    """A port that a pod declares; policies may refer to it by its name."""

    name: str
    number: int
    protocol: str


def _refuse(field: str, value: str, expected: str) -> BadInput:
    return BadInput(f"{field} {value!r} is not valid: expected {expected}", reason="INVALID_ARGUMENT")


def check_namespace(name: str, field: str = "namespace") -> str:
    """Return `name` if it is a DNS label (RFC 1123), else raise BadInput."""
    if len(name) > 63 or not _DNS_LABEL.fullmatch(name):
        raise _refuse(field, name, "a DNS label: lower-case letters, digits and '-', at most 63 characters")
    return name


def check_pod_name(name: str) -> str:
    """Return `name` if it is a DNS subdomain (RFC 1123), else raise BadInput."""
    if len(name) > 253 or not _DNS_SUBDOMAIN.fullmatch(name):
        raise _refuse(
            "pod name",
            name,
            "a DNS subdomain: lower-case letters, digits, '-' and '.', at most 253 characters",
        )
    return name


def parse_pod(text: str, field: str = "pod") -> PodRef:
    """`NS/NAME` -> PodRef."""
    namespace, slash, name = text.partition("/")
    if not slash:
        raise _refuse(field, text, "NAMESPACE/NAME")
    return PodRef(check_namespace(namespace), check_pod_name(name))


def check_label(key: str, value: str) -> tuple[str, str]:
    """Return `key` and `value` if they make a label of Kubernetes, else raise BadInput."""
    from services.chassis import labels
    from services.chassis.errors import InvalidArgument

    try:
        labels.check_key(key)
        labels.check_value(value, f"{key}={value}")
    except InvalidArgument as error:
        raise BadInput(error.message, reason=error.reason) from None
    return key, value


def parse_label(text: str, field: str = "label") -> tuple[str, str]:
    """`k=v` -> (k, v)."""
    key, equals, value = text.partition("=")
    if not equals:
        raise _refuse(field, text, "KEY=VALUE")
    return check_label(key, value)


def parse_labels(texts: tuple[str, ...] | list[str]) -> dict[str, str]:
    """`k=v` strings -> labels; a key that is given twice with two values is refused."""
    labels: dict[str, str] = {}
    for text in texts:
        key, value = parse_label(text)
        if labels.get(key, value) != value:
            raise _refuse("label", text, f"one value for {key!r}; it already has {labels[key]!r}")
        labels[key] = value
    return labels


def parse_annotation(text: str) -> tuple[str, str]:
    """`k=v` -> (k, v): a key as labels have it, and any value."""
    key, equals, value = text.partition("=")
    if not equals:
        raise _refuse("annotation", text, "KEY=VALUE")
    check_label(key, "")
    return key, value


def parse_annotations(texts: list[str]) -> dict[str, str]:
    """`k=v` strings -> annotations; a key that is given twice with two values is refused."""
    annotations: dict[str, str] = {}
    for text in texts:
        key, value = parse_annotation(text)
        if annotations.setdefault(key, value) != value:
            raise _refuse("annotation", text, f"one value for {key!r}; it already has {annotations[key]!r}")
    return annotations


def parse_annotation_changes(texts: list[str]) -> dict[str, str | None]:
    """`k=v` sets, `k-` removes -> {key: value or None}."""
    changes: dict[str, str | None] = {}
    for text in texts:
        if "=" not in text and text.endswith("-"):
            check_label(text[:-1], "")
            changes[text[:-1]] = None
        else:
            key, value = parse_annotation(text)
            changes[key] = value
    return changes


def parse_label_changes(texts: tuple[str, ...] | list[str]) -> dict[str, str | None]:
    """`k=v` sets, `k-` removes -> {key: value or None}."""
    changes: dict[str, str | None] = {}
    for text in texts:
        if "=" not in text and text.endswith("-"):
            key, _ = check_label(text[:-1], "")
            value: str | None = None
        elif "=" in text:
            key, value = parse_label(text)
        else:
            raise _refuse("label", text, "KEY=VALUE to set a label or KEY- to remove one")
        if key in changes and changes[key] != value:
            raise _refuse("label", text, f"one change for {key!r}")
        changes[key] = value
    return changes


def changed(labels: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
    """`labels` after `changes`."""
    merged = {**labels, **{key: value for key, value in changes.items() if value is not None}}
    return {key: value for key, value in merged.items() if changes.get(key, value) is not None}


def parse_port(text: str, field: str = "port") -> tuple[int, str]:
    """`PORT/PROTO` -> (number, protocol); the protocol defaults to TCP."""
    number, slash, protocol = text.partition("/")
    protocol = protocol.upper() if slash else "TCP"
    if protocol not in PROTOCOLS:
        raise _refuse(field, text, f"NUMBER/PROTOCOL with one of {', '.join(PROTOCOLS)}")
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 65535):
        raise _refuse(field, text, "NUMBER/PROTOCOL with a number from 1 to 65535")
    return int(number), protocol


def parse_port_or_type(text: str, field: str = "port") -> tuple[int, str]:
    """`PORT/PROTO`, `TYPE/ICMP` or `TYPE/ICMPv6` -> (number, protocol)."""
    number, _, protocol = text.partition("/")
    if protocol.upper() not in TYPED:
        return parse_port(text, field)
    if not (number.isascii() and number.isdigit() and int(number) <= 255):
        raise _refuse(field, text, f"TYPE/{protocol} with a type from 0 to 255, for example 8/ICMP")
    return int(number), protocol.upper()


def parse_named_port(text: str) -> NamedPort:
    """`NAME:NUM/PROTO` -> NamedPort."""
    name, colon, rest = text.partition(":")
    if not colon:
        raise _refuse("port", text, "NAME:NUMBER/PROTOCOL, for example http:80/TCP")
    if len(name) > 15 or not _PORT_NAME.fullmatch(name) or not re.search("[a-z]", name):
        raise _refuse(
            "port name",
            name,
            "at most 15 lower-case letters, digits and single '-', with at least one letter (RFC 6335)",
        )
    number, protocol = parse_port(rest)
    return NamedPort(name, number, protocol)


def parse_named_ports(texts: tuple[str, ...] | list[str]) -> tuple[NamedPort, ...]:
    """Named ports of one pod; a name that stands for two ports of one protocol is refused."""
    ports: dict[tuple[str, str], NamedPort] = {}
    for text in texts:
        port = parse_named_port(text)
        key = (port.name, port.protocol)
        if ports.get(key, port) != port:
            raise _refuse(
                "port", text, f"one number for {port.name!r}; it already stands for {ports[key].number}"
            )
        ports[key] = port
    return tuple(ports.values())
