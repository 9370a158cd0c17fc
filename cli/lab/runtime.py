"""The lab as a container runtime: makes pods' namespaces, calls the CNI plugin, keeps labels in step."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from cli.errors import BadInput, CliError, ServiceUnavailable
from cli.lab import cni, netns, process
from cli.lab.paths import MARK, LabPaths
from cli.lab.pods import Pod, PodStore
from cli.lab.process import ProcessId
from cli.lab.syntax import NamedPort, PodRef, changed

if TYPE_CHECKING:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import Cluster

SETTLE_TIMEOUT = 30.0
_POLL_SECONDS = 0.002


class Runtime:
    """Pods of a lab whose processes run."""

    def __init__(self, paths: LabPaths, nodes: list[str], cluster: Cluster) -> None:
        self._paths = paths
        self._nodes = nodes
        self._cluster = cluster
        self.store = PodStore(paths)

    def run(
        self,
        ref: PodRef,
        *,
        node: str = "",
        labels: Mapping[str, str] | None = None,
        ports: Sequence[NamedPort] = (),
        service_account: str = "",
        annotations: Mapping[str, str] | None = None,
    ) -> Pod:
        """Make a pod and return when every node can reach it under its policy.

        Raises BadInput for an unknown node, CliError (POD_EXISTS) for a taken name, and what the plugin
        said when it refused; then nothing of the pod is left.
        """
        if node and node not in self._nodes:
            raise BadInput(
                f"node {node!r} is not valid: expected one of {', '.join(self._nodes)}",
                reason="NODE_NOT_FOUND",
            )
        self._check_labels(ref.namespace, labels or {}, service_account=service_account)
        pod, unfinished = self.store.claim(
            ref, node, labels or {}, tuple(ports), self._nodes, service_account, annotations
        )
        if unfinished is not None:
            self._remove_traces(unfinished)
            self.store.put(pod)
        try:
            made = self._make(pod)
        except BaseException:
            self._undo(pod)
            raise
        self.store.put(made)
        return made

    def _make(self, pod: Pod) -> Pod:
        # The name is the lab's, and the record is the claim on it: what is there is a remnant.
        netns.delete(pod.netns)
        netns.create(pod.netns)
        result = cni.add(self._attachment(pod))
        ips = cni.addresses(result)
        endpoint = self._published(pod)
        self.settle(endpoint.ipcache_revision)
        return dataclasses.replace(pod, state="ready", ips=ips, endpoint_id=endpoint.id, result=result)

    def _attachment(self, pod: Pod) -> cni.Attachment:
        namespace = pod.ref.namespace
        return pod.attachment(
            self._paths, self.store.namespace_labels(namespace), self.store.namespace_annotations(namespace)
        )

    def _published(self, pod: Pod) -> loader_pb2.Endpoint:
        """The pod's endpoint, as soon as the cluster is told of it: a moment after the ADD."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while True:
            endpoint = self._endpoint(pod)
            if endpoint.ipcache_revision:
                return endpoint
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"the cluster has not been told of {pod.ref} within {SETTLE_TIMEOUT:g} s",
                    reason="NOT_PUBLISHED",
                    hint="`fimbria status` shows whether the identity service answers",
                )
            time.sleep(_POLL_SECONDS)

    def _undo(self, pod: Pod) -> None:
        try:
            self._remove_traces(pod)
            self.store.remove(pod.ref)
        except CliError as error:
            # The first error is the one to show; the record stays, and the next command tries again.
            print(f"warning: cleaning up after {pod.ref} failed: {error.message}", file=sys.stderr)

    def _remove_traces(self, pod: Pod) -> None:
        """DEL and remove the namespace of a pod, in whatever state it is."""
        mine = process.marked(self._paths.id, pod=str(pod.ref))
        process.end(mine, grace=0)
        cni.delete(self._attachment(pod))
        netns.delete(pod.netns)

    def delete(self, ref: PodRef) -> Pod:
        """Remove a pod and what runs in it. CliError (POD_NOT_FOUND) when there is none."""
        pod = self.store.find(ref)
        if pod is None or (pod.state != "ready" and not pod.unfinished):
            pod = self.store.get(ref)
        own = ProcessId.of(os.getpid())
        assert own is not None
        self.store.put(dataclasses.replace(pod, state="deleting", owner=own))
        self._remove_traces(pod)
        self.store.remove(ref)
        return pod

    def label(self, ref: PodRef, changes: Mapping[str, str | None]) -> Pod:
        """Change a pod's labels; returns when every node has its new identity and policy in force."""
        pod = self.store.get(ref)
        labels = changed(dict(pod.labels), dict(changes))
        strings = self._check_labels(ref.namespace, labels, service_account=pod.service_account)
        self.settle(self._update(pod, strings))
        relabelled = dataclasses.replace(pod, labels=labels)
        self.store.put(relabelled)
        return relabelled

    def label_namespace(self, namespace: str, changes: Mapping[str, str | None]) -> dict[str, str]:
        """Change a namespace's labels, those of all its pods with them, and return when that is in force."""
        before = self.store.namespace_labels(namespace)
        labels = changed(before, dict(changes))
        labels["kubernetes.io/metadata.name"] = namespace
        pods = [pod for pod in self.store.all() if pod.ref.namespace == namespace and pod.state == "ready"]
        wanted = {
            pod.ref: self._check_labels(namespace, pod.labels, labels, pod.service_account) for pod in pods
        }
        if not pods:
            self._check_labels(namespace, {}, labels)
        elif labels != before:
            with ThreadPoolExecutor(max_workers=8) as pool:
                revisions = list(pool.map(lambda pod: self._update(pod, wanted[pod.ref]), pods))
            self.settle(max(revisions))
        self.store.set_namespace_labels(namespace, labels)
        return labels

    def annotate_namespace(self, namespace: str, changes: Mapping[str, str | None]) -> dict[str, str]:
        """Change a namespace's annotations: for pods that are made from then on."""
        annotations = changed(self.store.namespace_annotations(namespace), dict(changes))
        self.store.set_namespace_annotations(namespace, annotations)
        return annotations

    def _check_labels(
        self,
        namespace: str,
        labels: Mapping[str, str],
        namespace_labels: Mapping[str, str] | None = None,
        service_account: str = "",
    ) -> tuple[str, ...]:
        """The label strings of a pod, its namespace labelled as given or else as it is."""
        from services.chassis.errors import InvalidArgument
        from services.chassis.labels import pod_labels

        try:
            if namespace_labels is None:
                namespace_labels = self.store.namespace_labels(namespace)
            return pod_labels(namespace, labels, namespace_labels, service_account)
        except InvalidArgument as error:
            raise BadInput(error.message, reason=error.reason) from None

    def _update(self, pod: Pod, labels: Sequence[str]) -> int:
        """Give the endpoint its labels; the ipcache revision that tells of them."""
        from fimbria.loader.v1 import loader_pb2

        from cli.client import call

        request = loader_pb2.UpdateEndpointLabelsRequest(id=pod.endpoint_id, labels=labels)
        endpoint = call(
            self._cluster.endpoints(pod.node).UpdateEndpointLabels, request, timeout=SETTLE_TIMEOUT
        )
        return endpoint.ipcache_revision

    def settle(self, ipcache_revision: int) -> None:
        """Return when every node has the revision of the ipcache in its kernel."""
        from fimbria.loader.v1 import loader_pb2

        from cli.client import call

        request = loader_pb2.WaitAppliedRequest(ipcache_revision=ipcache_revision)
        request.timeout.FromSeconds(int(SETTLE_TIMEOUT))
        for node in self._nodes:
            call(self._cluster.datapath(node).WaitApplied, request, timeout=SETTLE_TIMEOUT + 5)

    def label_strings(self, pod: Pod) -> tuple[str, ...]:
        """The pod's security-relevant labels, `source:key=value`."""
        return self._check_labels(pod.ref.namespace, pod.labels, service_account=pod.service_account)

    def _endpoint(self, pod: Pod) -> loader_pb2.Endpoint:
        for endpoint in self.endpoints(pod.node):
            if endpoint.container_id == pod.container_id:
                return endpoint
        raise CliError(
            f"the loader of {pod.node} has no endpoint for {pod.ref}, though the plugin succeeded",
            reason="ENDPOINT_NOT_FOUND",
        )

    def endpoints(self, node: str) -> Sequence[loader_pb2.Endpoint]:
        """All endpoints of a node."""
        from fimbria.loader.v1 import loader_pb2

        from cli.client import pages

        return pages(
            self._cluster.endpoints(node).ListEndpoints, loader_pb2.ListEndpointsRequest(), "endpoints"
        )

    def recover(self) -> list[str]:
        """Bring records and kernel together after something died; what was done, a line each.

        Unfinished pods and pods without a namespace are removed; those that exist are kept, with the labels
        that are on record.
        """
        told = []
        endpoints = {
            (node, endpoint.container_id): endpoint
            for node in self._nodes
            for endpoint in self.endpoints(node)
        }
        for pod in self.store.all():
            if pod.state == "ready" and netns.exists(pod.netns):
                endpoint = endpoints.get((pod.node, pod.container_id))
                if endpoint is not None:
                    labels = self.label_strings(pod)
                    if sorted(endpoint.labels) != sorted(labels):
                        self.settle(self._update(pod, labels))
                    continue
                told.append(f"pod {pod.ref} is removed: its endpoint on {pod.node} is gone")
            elif pod.state == "ready":
                told.append(f"pod {pod.ref} is removed: its network namespace is gone")
            elif pod.unfinished:
                told.append(f"pod {pod.ref} is removed: the command that was {pod.state} it was interrupted")
            else:
                continue
            self._remove_traces(pod)
            self.store.remove(pod.ref)
        known = {pod.netns for pod in self.store.all()}
        for name in netns.named(self._paths.netns_prefix):
            if "_" in name and name not in known:
                netns.delete(name)
        return told

    def rows(self) -> list[dict[str, Any]]:
        """The pods, joined with what their loaders say; identity is None where a loader is down."""
        found: dict[tuple[str, str], loader_pb2.Endpoint] = {}
        pods = self.store.all()
        for node in sorted({pod.node for pod in pods}):
            try:
                found |= {(node, endpoint.container_id): endpoint for endpoint in self.endpoints(node)}
            except CliError as error:
                print(f"warning: the loader of {node} does not answer: {error.message}", file=sys.stderr)
        return [_row(pod, found.get((pod.node, pod.container_id))) for pod in pods]

    def command(self, ref: PodRef, arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command in a pod's network namespace."""
        pod = self.store.get(ref)
        # nsenter changes nothing but the network: /sys with bpffs stays as it is.
        return subprocess.Popen(
            ["nsenter", f"--net={pod.netns_path}", "--", *arguments],
            env=environment(self._paths, ref),
            text=True,
            **options,
        )


def environment(paths: LabPaths, ref: PodRef) -> dict[str, str]:
    """Environment of a command in a pod: the caller's, and the mark by which the lab ends it."""
    return {**os.environ, MARK: paths.id, f"{MARK}_POD": str(ref)}


def _row(pod: Pod, endpoint: loader_pb2.Endpoint | None) -> dict[str, Any]:
    return {
        "namespace": pod.ref.namespace,
        "name": pod.ref.name,
        "node": pod.node,
        "state": pod.state,
        "netns": str(pod.netns_path),
        "ips": list(pod.ips),
        "labels": dict(pod.labels),
        "ports": [{"name": port.name, "port": port.number, "protocol": port.protocol} for port in pod.ports],
        "container_id": pod.container_id,
        "endpoint_id": endpoint.id if endpoint else (pod.endpoint_id or None),
        "identity": endpoint.identity if endpoint else None,
        "policy_revision": endpoint.policy_revision if endpoint else None,
    }
