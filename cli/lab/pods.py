"""What the lab knows of its pods and Kubernetes namespaces: one small file each.

A pod's record is written before anything of the pod is made and removed after everything is gone, so that
whatever an interrupted command left behind can be found and finished by the next one.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cli.errors import CliError
from cli.lab.cni import Attachment
from cli.lab.files import locked, read_json, write_json
from cli.lab.paths import LabPaths, netns_path
from cli.lab.process import ProcessId
from cli.lab.syntax import NamedPort, PodRef

State = Literal["creating", "ready", "deleting"]

_NAMESPACE_FILES = (".json", ".annotations")


@dataclass(frozen=True)
class Pod:
    """A pod of the lab, as its record tells."""

    ref: PodRef
    node: str
    container_id: str
    netns: str
    """Name of its network namespace."""
    labels: Mapping[str, str]
    ports: tuple[NamedPort, ...]
    state: State
    owner: ProcessId
    """The process that makes or removes it, while it does."""
    ips: tuple[str, ...] = ()
    endpoint_id: int = 0
    service_account: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def netns_path(self) -> Path:
        return netns_path(self.netns)

    @property
    def unfinished(self) -> bool:
        """True when the command that was making or removing it has died."""
        return self.state != "ready" and not self.owner.alive

    def attachment(
        self,
        paths: LabPaths,
        namespace_labels: Mapping[str, str],
        namespace_annotations: Mapping[str, str],
    ) -> Attachment:
        """What the CNI plugin is told about it."""
        return Attachment(
            pod=self.ref,
            container_id=self.container_id,
            netns=self.netns_path,
            socket=paths.cni_socket(self.node),
            queue=paths.cni_queue(self.node),
            labels=self.labels,
            namespace_labels=namespace_labels,
            ports=self.ports,
            service_account=self.service_account,
            annotations=self.annotations,
            namespace_annotations=namespace_annotations,
        )


class PodStore:
    """The records of a lab's pods and namespaces."""

    def __init__(self, paths: LabPaths) -> None:
        self._paths = paths

    def namespace_labels(self, namespace: str) -> dict[str, str]:
        """Labels of a namespace; every namespace has `kubernetes.io/metadata.name`."""
        stored = read_json(self._paths.namespaces / f"{namespace}.json") or {}
        return {**stored, "kubernetes.io/metadata.name": namespace}

    def set_namespace_labels(self, namespace: str, labels: Mapping[str, str]) -> None:
        write_json(self._paths.namespaces / f"{namespace}.json", dict(sorted(labels.items())))

    def namespace_annotations(self, namespace: str) -> dict[str, str]:
        """Annotations of a namespace."""
        return read_json(self._annotations(namespace)) or {}

    def set_namespace_annotations(self, namespace: str, annotations: Mapping[str, str]) -> None:
        write_json(self._annotations(namespace), dict(sorted(annotations.items())))

    def _annotations(self, namespace: str) -> Path:
        return self._paths.namespaces / f"{namespace}.annotations"

    def namespaces(self) -> list[str]:
        """Names of the namespaces that were set or have pods."""
        found = self._paths.namespaces.glob("*.*")
        named = {path.stem for path in found if path.suffix in _NAMESPACE_FILES and path.stem}
        return sorted(named | {pod.ref.namespace for pod in self.all()})

    def all(self) -> list[Pod]:
        """All pods by namespace and name."""
        pods = [self._read(path) for path in self._paths.pods.glob("[!.]*.json")]
        return sorted(
            (pod for pod in pods if pod is not None), key=lambda pod: (pod.ref.namespace, pod.ref.name)
        )

    def find(self, ref: PodRef) -> Pod | None:
        return self._read(self._path(ref))

    def get(self, ref: PodRef) -> Pod:
        """The pod; CliError when there is none that is ready."""
        pod = self.find(ref)
        if pod is None or pod.state != "ready":
            state = "" if pod is None else f": it is {pod.state}"
            raise CliError(
                f"there is no pod {ref}{state}", reason="POD_NOT_FOUND", hint="`fimbria lab list` shows all"
            )
        return pod

    def claim(
        self,
        ref: PodRef,
        node: str,
        labels: Mapping[str, str],
        ports: tuple[NamedPort, ...],
        nodes: list[str],
        service_account: str = "",
        annotations: Mapping[str, str] | None = None,
    ) -> tuple[Pod, Pod | None]:
        """Put a new pod on record for the caller to make, on `node` or on the node with the fewest pods.

        Returns the record and that of an unfinished pod of the same name, which has to be removed first.
        Raises CliError (POD_EXISTS) for a name that is taken.
        """
        own = ProcessId.of(os.getpid())
        assert own is not None
        with locked(self._paths.pods / ".lock"):
            before = self.find(ref)
            if before is not None and not before.unfinished:
                doing = "exists" if before.state == "ready" else f"is {before.state}"
                raise CliError(
                    f"pod {ref} {doing} on {before.node}",
                    reason="POD_EXISTS",
                    hint=f"`fimbria lab delete {ref}`",
                )
            if not node:
                used = [pod.node for pod in self.all()]
                node = min(nodes, key=used.count)
            pod = Pod(
                ref=ref,
                node=node,
                container_id=secrets.token_hex(32),
                netns=self._paths.pod_netns(ref.namespace, ref.name),
                labels=dict(labels),
                ports=ports,
                state="creating",
                owner=own,
                service_account=service_account,
                annotations=dict(annotations or {}),
            )
            if before is None:
                self.put(pod)
            else:
                # The older record names the container to clean up: it is replaced when that is done.
                self.put(dataclasses.replace(before, owner=own))
            return pod, before

    def put(self, pod: Pod) -> None:
        """Write the record."""
        write_json(
            self._path(pod.ref),
            {
                "namespace": pod.ref.namespace,
                "name": pod.ref.name,
                "node": pod.node,
                "container_id": pod.container_id,
                "netns": pod.netns,
                "labels": dict(pod.labels),
                "ports": [dataclasses.asdict(port) for port in pod.ports],
                "state": pod.state,
                "owner": dataclasses.asdict(pod.owner),
                "ips": list(pod.ips),
                "endpoint_id": pod.endpoint_id,
                "service_account": pod.service_account,
                "annotations": dict(pod.annotations),
                "result": pod.result,
            },
        )

    def remove(self, ref: PodRef) -> None:
        self._path(ref).unlink(missing_ok=True)

    def _path(self, ref: PodRef) -> Path:
        # File names end at 255 bytes; the namespace's name is hashed when it would be too long.
        return self._paths.pods / f"{self._paths.pod_netns(ref.namespace, ref.name)}.json"

    def _read(self, path: Path) -> Pod | None:
        record = read_json(path)
        if record is None:
            return None
        return Pod(
            ref=PodRef(record["namespace"], record["name"]),
            node=record["node"],
            container_id=record["container_id"],
            netns=record["netns"],
            labels=record["labels"],
            ports=tuple(NamedPort(**port) for port in record["ports"]),
            state=record["state"],
            owner=ProcessId(**record["owner"]),
            ips=tuple(record["ips"]),
            endpoint_id=record["endpoint_id"],
            service_account=record.get("service_account", ""),
            annotations=record.get("annotations", {}),
            result=record["result"],
        )
