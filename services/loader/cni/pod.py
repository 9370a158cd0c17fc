"""What a network configuration and CNI_ARGS say about the pod.

Kubernetes runtimes name the pod in CNI_ARGS (``K8S_POD_NAMESPACE``, ``K8S_POD_NAME``). What they do not tell,
labels and named ports, comes in the configuration's ``args.cni`` (CNI conventions)::

    "args": {"cni": {"labels": [{"key": "app", "value": "web"}],
                     "namespaceLabels": [{"key": "team", "value": "a"}],
                     "serviceAccount": "front",
                     "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
                     "annotations": [{"key": "fimbria.io/ip-pool", "value": "blue"}],
                     "namespaceAnnotations": []}}

or, pod by pod and in the place of what the configuration says for all, as text: see :mod:`.pod_text`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.chassis.errors import FimbriaError
from services.chassis.labels import LabelSet, check_key, check_value, pod_labels
from services.loader.cni.errors import CniCode, CniError
from services.loader.cni.pod_text import conventions_in_annotations, conventions_in_args, pod_annotations

PROTOCOLS = ("TCP", "UDP", "SCTP")
MAX_LABELS = 256
MAX_ANNOTATIONS = 256
MAX_PORTS = 256
DEFAULT_NAMESPACE = "default"

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)
_EXPECTED = {list: "a list", dict: "an object", str: "a string", int: "a whole number"}


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A port that the pod declares: ``protocol`` is TCP, UDP or SCTP, ``port`` 1..65535."""

    name: str
    port: int
    protocol: str


@dataclass(frozen=True, slots=True)
class Pod:
    """The pod of an ADD: its name, its labels (validated), and its ports."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    namespace_labels: Mapping[str, str]
    ports: tuple[NamedPort, ...]
    service_account: str = ""
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    namespace_annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def label_set(self) -> LabelSet:
        """The labels that make the pod's identity."""
        return pod_labels(self.namespace, self.labels, self.namespace_labels, self.service_account)


def parse_args(text: str) -> dict[str, str]:
    """CNI_ARGS (``KEY=VALUE;KEY=VALUE``) as a mapping. Raises CniError 4 naming the malformed pair."""
    found: dict[str, str] = {}
    for pair in text.split(";"):
        if not pair:
            continue
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CniError(
                CniCode.INVALID_ENVIRONMENT,
                f"invalid CNI_ARGS: {pair!r} is not KEY=VALUE",
                "expected KEY=VALUE;KEY=VALUE",
            )
        found[key] = value
    return found


def parse_pod(args: Mapping[str, str], config: Mapping[str, Any], container_id: str) -> Pod:
    """The pod of an ADD.

    Without Kubernetes' arguments the pod is named after its container, in the namespace ``default``.
    Raises CniError 4 for CNI_ARGS, 7 for the configuration, 2 for a request that would have to be ignored.
    """
    refuse_unsupported(config, args)
    namespace = args.get("K8S_POD_NAMESPACE", DEFAULT_NAMESPACE)
    name = args.get("K8S_POD_NAME", container_id)
    if "K8S_POD_NAME" not in args or "K8S_POD_INFRA_CONTAINER_ID" not in args:
        # A container's name (Podman's, say), which may have more in it than a pod's.
        name = name.lower().replace("_", "-").rstrip("-.")
    _check_name("K8S_POD_NAMESPACE", namespace, _DNS_LABEL, "a DNS label of up to 63 characters")
    _check_name("K8S_POD_NAME", name, _DNS_SUBDOMAIN, "a DNS name of up to 253 characters")
    said = [
        ("args.cni", _member(_member(config, "", "args", dict, {}), "args", "cni", dict, {})),
        ("annotations", conventions_in_annotations(config)),
        ("CNI_ARGS", conventions_in_args(args)),
    ]
    labels: dict[str, str] = {}
    namespace_labels: dict[str, str] = {}
    ports: dict[tuple[str, str], NamedPort] = {}
    annotations: dict[str, str] = dict(pod_annotations(config))
    namespace_annotations: dict[str, str] = {}
    service_account = ""
    for path, conventions in said:
        labels |= _labels(conventions, path, "labels")
        namespace_labels |= _labels(conventions, path, "namespaceLabels")
        annotations |= _annotations(conventions, path, "annotations")
        namespace_annotations |= _annotations(conventions, path, "namespaceAnnotations")
        ports |= _ports(conventions, path)
        service_account = _member(conventions, path, "serviceAccount", str, "") or service_account
        _checked(f"{path}.serviceAccount", check_value, service_account)
    pod = Pod(
        namespace,
        name,
        labels,
        namespace_labels,
        tuple(ports.values()),
        service_account,
        annotations,
        namespace_annotations,
    )
    try:
        pod.label_set()
    except FimbriaError as exc:
        raise _invalid("args.cni.labels", str(exc)) from exc
    return pod


def refuse_unsupported(config: Mapping[str, Any], args: Mapping[str, str]) -> None:
    """Raises CniError 2 when a call asks for something that would silently not be done."""
    asked = (
        ("ipam", config.get("ipam")),
        ("ipMasq", config.get("ipMasq")),
        ("args.cni.ips", _peek(config, "args", "cni", "ips")),
        ("CNI_ARGS: IP", args.get("IP")),
        ("runtimeConfig.ips", _peek(config, "runtimeConfig", "ips")),
        ("runtimeConfig.ipRanges", _peek(config, "runtimeConfig", "ipRanges")),
        ("runtimeConfig.aliases", _peek(config, "runtimeConfig", "aliases")),
        ("runtimeConfig.deviceID", _peek(config, "runtimeConfig", "deviceID")),
        ("runtimeConfig.infinibandGUID", _peek(config, "runtimeConfig", "infinibandGUID")),
        ("runtimeConfig.portMappings", _peek(config, "runtimeConfig", "portMappings")),
    )
    for field, value in asked:
        if value:
            raise CniError(
                CniCode.UNSUPPORTED_FIELD,
                f"network configuration: unsupported field {field} with value {value!r}",
                "remove it, or chain a plugin that does this; addresses come from Fimbria's ipam service",
            )


def _peek(config: Mapping[str, Any], *path: str) -> object:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _check_name(variable: str, value: str, pattern: re.Pattern[str], expected: str) -> None:
    if not pattern.fullmatch(value):
        raise CniError(
            CniCode.INVALID_ENVIRONMENT, f"invalid CNI_ARGS: {variable} {value!r}", f"expected {expected}"
        )


def _invalid(field: str, problem: str) -> CniError:
    return CniError(CniCode.INVALID_CONFIG, f"network configuration: {field}: {problem}", field)


def _member(parent: Mapping[str, Any], path: str, key: str, kind: type[Any], default: Any = None) -> Any:
    """``parent[key]`` of the type asked for; a missing or null one is ``default``, without one an error."""
    value = parent.get(key)
    field = f"{path}.{key}" if path else key
    if value is None:
        if default is None:
            raise _invalid(field, f"missing; expected {_EXPECTED[kind]}")
        return default
    # True is an int to Python, not to whoever wrote the configuration.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _invalid(field, f"got {value!r}; expected {_EXPECTED[kind]}")
    return value


def _items(
    conventions: Mapping[str, Any], path: str, key: str, limit: int
) -> list[tuple[str, dict[str, Any]]]:
    items = _member(conventions, path, key, list, [])
    if len(items) > limit:
        raise _invalid(f"{path}.{key}", f"has {len(items)} items; expected at most {limit}")
    found = []
    for index, item in enumerate(items):
        field = f"{path}.{key}[{index}]"
        if not isinstance(item, dict):
            raise _invalid(field, f"got {item!r}; expected an object")
        found.append((field, item))
    return found


def _labels(conventions: Mapping[str, Any], path: str, key: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, item in _items(conventions, path, key, MAX_LABELS):
        name: str = _member(item, field, "key", str)
        value: str = _member(item, field, "value", str, "")
        _checked(f"{field}.key", check_key, name)
        _checked(f"{field}.value", check_value, value)
        if found.setdefault(name, value) != value:
            raise _invalid(f"{field}.key", f"{name!r} is given twice with different values")
    return found


def _annotations(conventions: Mapping[str, Any], path: str, key: str) -> dict[str, str]:
    """Annotations: keys as labels have them, values of any text."""
    found: dict[str, str] = {}
    for field, item in _items(conventions, path, key, MAX_ANNOTATIONS):
        name: str = _member(item, field, "key", str)
        value: str = _member(item, field, "value", str, "")
        _checked(f"{field}.key", check_key, name)
        if found.setdefault(name, value) != value:
            raise _invalid(f"{field}.key", f"{name!r} is given twice with different values")
    return found


def _checked(field: str, check: Callable[[str], None], text: str) -> None:
    try:
        check(text)
    except FimbriaError as exc:
        raise _invalid(field, str(exc)) from exc


def _ports(conventions: Mapping[str, Any], path: str) -> dict[tuple[str, str], NamedPort]:
    found: dict[tuple[str, str], NamedPort] = {}
    for field, item in _items(conventions, path, "ports", MAX_PORTS):
        name: str = _member(item, field, "name", str)
        number: int = _member(item, field, "port", int)
        protocol: str = _member(item, field, "protocol", str, "TCP")
        if not _PORT_NAME.fullmatch(name):
            raise _invalid(
                f"{field}.name",
                f"got {name!r}; expected up to 15 of [a-z0-9-], with a letter, single dashes inside only",
            )
        if not 1 <= number <= 65535:
            raise _invalid(f"{field}.port", f"got {number}; expected 1..65535")
        if protocol not in PROTOCOLS:
            raise _invalid(f"{field}.protocol", f"got {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
        port = NamedPort(name, number, protocol)
        if found.setdefault((name, protocol), port) != port:
            raise _invalid(f"{field}.name", f"{name!r} is given twice for {protocol} with different ports")
    return found
