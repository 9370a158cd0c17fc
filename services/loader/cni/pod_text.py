"""Labels and ports as a line of text, for runtimes that can pass on nothing else about a pod.

Podman hands on what it finds in its own ``CNI_ARGS``, and containerd's CRI the annotations of a pod to a
plugin whose configuration asks for them (``"capabilities": {"io.kubernetes.cri.pod-annotations": true}``)::

    CNI_ARGS="FIMBRIA_LABELS=app=web,tier=front;FIMBRIA_PORTS=http:80/TCP,dns:53/UDP;FIMBRIA_IP_POOL=blue"
    io.fimbria.labels: app=web,tier=front        io.fimbria.ports: http:80/TCP,dns:53/UDP

``FIMBRIA_NAMESPACE_LABELS``, ``FIMBRIA_SERVICE_ACCOUNT`` and ``FIMBRIA_IP_POOL`` are for CNI_ARGS alone; the
last stands for the pod's annotation ``fimbria.io/ip-pool``. Here all become what ``args.cni`` of the CNI
conventions holds, to be checked as that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.chassis.labels import SERVICE_ACCOUNT_KEY
from services.loader.cni.errors import CniCode, CniError

ANNOTATIONS_CAPABILITY = "io.kubernetes.cri.pod-annotations"

POOL_ANNOTATION = "fimbria.io/ip-pool"

_ARGS = {
    "FIMBRIA_LABELS": "labels",
    "FIMBRIA_NAMESPACE_LABELS": "namespaceLabels",
    "FIMBRIA_PORTS": "ports",
    "FIMBRIA_SERVICE_ACCOUNT": "serviceAccount",
}
# No labels of the namespace and no service account: annotations are written by whoever may make a pod, and
# who may do that must not be able to move it into another namespace's policy or take another's rights.
_ANNOTATIONS = {"io.fimbria.labels": "labels", "io.fimbria.ports": "ports"}


def conventions_in_args(args: Mapping[str, str]) -> dict[str, Any]:
    """What CNI_ARGS say, as ``args.cni`` would. Raises CniError 4."""
    try:
        found = _conventions(args, _ARGS)
        if pool := args.get("FIMBRIA_IP_POOL", "").strip():
            found["annotations"] = [{"key": POOL_ANNOTATION, "value": pool}]
        return found
    except ValueError as exc:
        raise CniError(CniCode.INVALID_ENVIRONMENT, f"invalid CNI_ARGS: {exc}") from exc


def conventions_in_annotations(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the pod's annotations say, as ``args.cni`` would. Raises CniError 7."""
    annotations = _passed_on(config)
    if not annotations:
        return {}
    try:
        found = _conventions(annotations, _ANNOTATIONS)
        if any(label["key"] == SERVICE_ACCOUNT_KEY for label in found["labels"]):
            raise ValueError(
                f"io.fimbria.labels: {SERVICE_ACCOUNT_KEY} is not a label that a pod may give itself"
            )
        return found
    except ValueError as exc:
        raise CniError(CniCode.INVALID_CONFIG, f"pod annotation {exc}") from exc


def pod_annotations(config: Mapping[str, Any]) -> dict[str, str]:
    """The pod's annotations as the runtime passes them on; those that are no text are none."""
    return {key: text for key, text in _passed_on(config).items() if isinstance(text, str)}


def _passed_on(config: Mapping[str, Any]) -> dict[str, Any]:
    runtime = config.get("runtimeConfig")
    annotations = runtime.get(ANNOTATIONS_CAPABILITY) if isinstance(runtime, dict) else None
    return annotations if isinstance(annotations, dict) else {}


def _conventions(texts: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, key in names.items():
        text = texts.get(name, "")
        if not isinstance(text, str):
            raise ValueError(f"{name}: got {text!r}; expected a string")
        if key == "serviceAccount":
            found[key] = text.strip()
            continue
        read = _port if key == "ports" else _label
        found[key] = [read(name, item.strip()) for item in text.split(",") if item.strip()]
    return found


def _label(name: str, item: str) -> dict[str, Any]:
    key, equals, value = item.partition("=")
    if not equals:
        raise ValueError(f"{name}: got {item!r}; expected KEY=VALUE,KEY=VALUE")
    return {"key": key, "value": value}


def _port(name: str, item: str) -> dict[str, Any]:
    port, _, rest = item.partition(":")
    number, _, protocol = rest.partition("/")
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"{name}: got {item!r}; expected NAME:NUMBER/PROTOCOL,NAME:NUMBER/PROTOCOL")
    return {"name": port, "port": int(number[:6]), "protocol": protocol.upper() or "TCP"}
