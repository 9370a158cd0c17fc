"""A CNI call as it arrives from the plugin, and its checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from services.loader.cni.errors import CURRENT_VERSION, SUPPORTED_VERSIONS, CniCode, CniError
from services.loader.cni.interface_settings import ANY, InterfaceSettings, parse_interface
from services.loader.cni.pod import Pod, parse_args, parse_pod
from services.loader.cni.prev_result import NOTHING, PrevResult, parse_prev_result

PROTOCOL = 1
MAX_CONTAINER_ID = 200
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC")
# About a network, not a container; in the specification since 1.1.0.
_NETWORK_COMMANDS = ("STATUS", "GC")
# The second name is what the specification's first edition said.
_VALID_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")

_CNI_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", re.ASCII)
_FORBIDDEN_IN_IFNAME = re.compile(r"[/:\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True)
class CniRequest:
    """One call; STATUS and GC have no container, interface and namespace.

    ``netns_fd`` is open for as long as the handler runs, and is None for a DEL whose namespace is gone.
    ``started_ns`` is when the plugin started, in nanoseconds since the epoch, ``started_boot_ns`` the same on
    CLOCK_BOOTTIME, 0 where that is not known. ``traceparent`` is the runtime's W3C context, or empty.
    """

    command: str
    container_id: str
    ifname: str
    netns_path: str
    netns_fd: int | None
    args: Mapping[str, str]
    config: Mapping[str, Any]
    started_ns: int
    traceparent: str
    started_boot_ns: int

    @property
    def network(self) -> str:
        """The name of the network configuration."""
        return str(self.config.get("name", ""))

    @property
    def key(self) -> tuple[str, str]:
        """What the specification calls an attachment: the container and the interface in it."""
        return self.container_id, self.ifname

    @property
    def version(self) -> str:
        """The configuration's cniVersion, one of the supported ones."""
        return str(self.config.get("cniVersion"))


@dataclass(frozen=True, slots=True)
class AddRequest(CniRequest):
    """An ADD, with what is known of its pod, and what the plugins before this one have made."""

    pod: Pod
    interface: InterfaceSettings = ANY
    prev: PrevResult = NOTHING


@dataclass(frozen=True, slots=True)
class GcRequest(CniRequest):
    """A GC: whatever the network has besides ``valid`` is to go."""

    valid: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Envelope:
    """A decoded request before its checks; ``version`` is what an error about it is written in."""

    fields: dict[str, Any]

    @property
    def command(self) -> str:
        value = self.fields.get("command")
        return value if isinstance(value, str) else ""

    @property
    def version(self) -> str:
        config = self.fields.get("config")
        version = config.get("cniVersion") if isinstance(config, dict) else None
        return version if version in SUPPORTED_VERSIONS else CURRENT_VERSION


def decode(payload: bytes) -> Envelope:
    """Parses a request. Raises CniError 6 when it is not a JSON object in a protocol this loader speaks."""
    try:
        fields = orjson.loads(payload)
    except orjson.JSONDecodeError as exc:
        raise CniError(CniCode.DECODE_FAILURE, "the request is not JSON", str(exc)) from exc
    if not isinstance(fields, dict):
        raise CniError(CniCode.DECODE_FAILURE, "the request is not a JSON object")
    if fields.get("protocol") != PROTOCOL:
        raise CniError(
            CniCode.DECODE_FAILURE,
            f"the plugin speaks protocol {fields.get('protocol')!r}, the loader {PROTOCOL}",
            "install the plugin and the loader from the same release",
        )
    return Envelope(fields)


def parse_request(envelope: Envelope, netns_fd: int | None) -> CniRequest:
    """The checked call: an :class:`AddRequest` for ADD, a :class:`GcRequest` for GC. Raises CniError with the
    code for what is wrong.

    A DEL is not asked about its pod: whatever its configuration says by now, it must get through.
    """
    fields = envelope.fields
    command = envelope.command
    if command not in COMMANDS:
        raise CniError(CniCode.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND {command!r}")
    container_id = _text(fields, "containerId", "CNI_CONTAINERID")
    ifname = _text(fields, "ifname", "CNI_IFNAME")
    if command not in _NETWORK_COMMANDS:
        _check_attachment(container_id, ifname)
    config = fields.get("config")
    if not isinstance(config, dict):
        raise CniError(CniCode.DECODE_FAILURE, "the network configuration is not a JSON object")
    if config.get("cniVersion") not in SUPPORTED_VERSIONS:
        raise CniError(
            CniCode.INCOMPATIBLE_VERSION,
            f"incompatible cniVersion {config.get('cniVersion')!r}",
            f"supported: {', '.join(SUPPORTED_VERSIONS)}",
        )
    if command in _NETWORK_COMMANDS and config["cniVersion"] != CURRENT_VERSION:
        raise CniError(
            CniCode.INCOMPATIBLE_VERSION,
            f"cniVersion {config['cniVersion']} has no {command}",
            f"expected {CURRENT_VERSION} or later",
        )
    if netns_fd is None and command in ("ADD", "CHECK"):
        raise CniError(CniCode.INVALID_ENVIRONMENT, "CNI_NETNS: no network namespace was passed")
    request = CniRequest(
        command=command,
        container_id=container_id,
        ifname=ifname,
        netns_path=_text(fields, "netns", "CNI_NETNS"),
        netns_fd=netns_fd,
        args=_args(_text(fields, "args", "CNI_ARGS"), command),
        config=config,
        started_ns=_moment(fields, "startedNs"),
        traceparent=_text(fields, "traceparent", "TRACEPARENT"),
        started_boot_ns=_moment(fields, "startedBootNs"),
    )
    common = {name: getattr(request, name) for name in CniRequest.__slots__}
    if command == "GC":
        return GcRequest(**common, valid=_valid_attachments(config))
    if command != "ADD":
        return request
    return AddRequest(
        **common,
        pod=parse_pod(request.args, config, container_id),
        interface=parse_interface(config, request.args, ifname),
        prev=parse_prev_result(config, ifname),
    )


def valid_ifname(ifname: str) -> bool:
    """What the kernel takes as an interface name, less control characters."""
    size = len(ifname.encode())
    return 0 < size <= 15 and ifname not in (".", "..") and not _FORBIDDEN_IN_IFNAME.search(ifname)


def _check_attachment(container_id: str, ifname: str) -> None:
    if not _CNI_NAME.fullmatch(container_id) or len(container_id) > MAX_CONTAINER_ID:
        raise CniError(CniCode.INVALID_ENVIRONMENT, f"invalid CNI_CONTAINERID {container_id!r}")
    if not valid_ifname(ifname):
        raise CniError(CniCode.INVALID_ENVIRONMENT, f"invalid CNI_IFNAME {ifname!r}")


def _valid_attachments(config: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Attachments that a GC leaves alone. Without the list everything would go: it must be there."""
    name = next((name for name in _VALID_ATTACHMENTS if name in config), _VALID_ATTACHMENTS[0])
    listed = config.get(name)
    if not isinstance(listed, list):
        raise CniError(
            CniCode.INVALID_CONFIG,
            f"network configuration: {name}: got {listed!r}; expected a list of containerID and ifname",
            name,
        )
    found = set()
    for index, item in enumerate(listed):
        container_id, ifname = (
            (item.get("containerID"), item.get("ifname")) if isinstance(item, dict) else (None, None)
        )
        if not isinstance(container_id, str) or not isinstance(ifname, str):
            raise CniError(
                CniCode.INVALID_CONFIG,
                f"network configuration: {name}[{index}]: got {item!r}; "
                "expected an object with the strings containerID and ifname",
                name,
            )
        found.add((container_id, ifname))
    return frozenset(found)


def _moment(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) else 0


def _args(text: str, command: str) -> dict[str, str]:
    try:
        return parse_args(text)
    except CniError:
        if command == "DEL":
            return {}
        raise


def _text(fields: Mapping[str, Any], name: str, variable: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise CniError(CniCode.DECODE_FAILURE, f"the request's {name} ({variable}) is not a string")
    return value
