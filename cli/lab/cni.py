"""Executes the CNI plugin as a container runtime does: environment and configuration in, JSON out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from cli.errors import BadInput, CliError, ServiceUnavailable
from cli.lab.preflight import CNI_PLUGIN
from cli.lab.syntax import NamedPort, PodRef

VERSION = "1.0.0"
IFNAME = "eth0"
TIMEOUT = 60.0
# Codes of the CNI specification: 4 invalid environment, 7 invalid configuration, 11 try again later.
_BAD_INPUT = (4, 7)
_TRY_AGAIN = 11
# Fimbria's own: no address, and none for a while. The plugin's details say what would help.
_EXHAUSTED = 106


@dataclass(frozen=True)
class Attachment:
    """What the plugin is told about one container."""

    pod: PodRef
    container_id: str
    netns: Path
    socket: Path
    queue: Path
    labels: Mapping[str, str]
    namespace_labels: Mapping[str, str]
    ports: Sequence[NamedPort] = ()
    service_account: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    namespace_annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def configuration(self) -> dict[str, Any]:
        """The network configuration, as a runtime would put it together."""
        return {
            "cniVersion": VERSION,
            "name": "fimbria",
            "type": CNI_PLUGIN.name,
            "socket": str(self.socket),
            "queue": str(self.queue),
            "args": {
                "cni": {
                    "labels": _pairs(self.labels),
                    "namespaceLabels": _pairs(self.namespace_labels),
                    "serviceAccount": self.service_account,
                    "annotations": _pairs(self.annotations),
                    "namespaceAnnotations": _pairs(self.namespace_annotations),
                    "ports": [
                        {"name": port.name, "port": port.number, "protocol": port.protocol}
                        for port in self.ports
                    ],
                }
            },
        }

    def environment(self, command: str) -> dict[str, str]:
        """The variables of the CNI specification."""
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": str(self.netns),
            "CNI_IFNAME": IFNAME,
            "CNI_ARGS": (
                f"IgnoreUnknown=1;K8S_POD_NAMESPACE={self.pod.namespace};K8S_POD_NAME={self.pod.name};"
                f"K8S_POD_INFRA_CONTAINER_ID={self.container_id}"
            ),
            "CNI_PATH": str(CNI_PLUGIN.parent),
        }


def _pairs(labels: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in sorted(labels.items())]


def add(attachment: Attachment) -> dict[str, Any]:
    """ADD: connect the container; the CNI result. Raises CliError (ServiceUnavailable for code 11)."""
    result = _execute("ADD", attachment)
    if not isinstance(result, dict) or not result.get("ips"):
        raise CliError(
            f"the CNI plugin answered ADD without an address: {result!r}", reason="CNI_RESULT_INVALID"
        )
    return result


def addresses(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The addresses of an ADD's result, without their prefix lengths, IPv4's first."""
    found = [ip_interface(item["address"]).ip for item in result["ips"]]
    return tuple(str(address) for address in sorted(found, key=lambda address: address.version))


def delete(attachment: Attachment) -> None:
    """DEL: disconnect the container; succeeds when it is not connected, and with the loader down."""
    _execute("DEL", attachment)


def _execute(command: str, attachment: Attachment) -> Any:
    try:
        done = subprocess.run(
            [str(CNI_PLUGIN)],
            input=json.dumps(attachment.configuration),
            env={"PATH": os.environ.get("PATH", ""), **attachment.environment(command)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        raise CliError(
            f"the CNI plugin {CNI_PLUGIN} is not built", reason="CNI_PLUGIN_MISSING", hint="run `make build`"
        ) from None
    except subprocess.TimeoutExpired:
        raise CliError(
            f"the CNI plugin did not finish {command} of {attachment.pod} within {TIMEOUT:g} s",
            reason="CNI_TIMEOUT",
        ) from None
    try:
        answer = json.loads(done.stdout) if done.stdout.strip() else None
    except ValueError:
        answer = None
    if done.returncode == 0:
        return answer
    raise _failure(command, attachment.pod, answer, done.stderr.strip())


def _failure(command: str, pod: PodRef, answer: Any, told: str) -> CliError:
    if not isinstance(answer, dict) or "code" not in answer:
        return CliError(
            f"CNI {command} of {pod} failed: {told or 'the plugin said nothing'}", reason="CNI_FAILED"
        )
    code = int(answer["code"])
    text = ": ".join(part for part in (str(answer.get("msg", "")), str(answer.get("details", ""))) if part)
    message = f"CNI {command} of {pod} failed with code {code}: {text}"
    if code == _TRY_AGAIN:
        return ServiceUnavailable(
            message, reason="CNI_TRY_AGAIN", hint="`fimbria lab up` starts what has died; then try again"
        )
    if code == _EXHAUSTED:
        return CliError(message, reason="CNI_EXHAUSTED", hint="`fimbria pool list` shows the pools")
    return (BadInput if code in _BAD_INPUT else CliError)(message, reason=f"CNI_{code}")
