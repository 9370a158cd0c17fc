"""A lab that is made to be what a case asks for: namespaces, pods, policies, and what happens to them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fimbria.policy.v1 import policy_pb2

from cli.client import pages
from cli.commands.policy import apply_manifests, wait_enforced
from cli.lab.lab import Lab
from cli.lab.processes import POOL_CIDRS
from tests.conformance.cases import Case, Manifest, Pod, pod

# Pods are made and removed so many at a time.
AT_ONCE = 4
ENFORCED_WITHIN = 20.0
_IP = re.compile(r"\{\{ip:([^}]*)\}\}")


class CaseCluster:
    """A lab and what the cases have made of it so far; the next one keeps the pods that it needs too."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._pods: dict[str, Pod] = {}
        self._nodes: dict[str, str] = {}
        self._namespaces: dict[str, dict[str, str]] = {}
        self.pods_made = 0

    def settle(self, case: Case) -> None:
        """Have just the case's namespaces and pods, and no policy."""
        self._delete_policies(self._policies())
        wanted = {str(each): each for each in case.pods}
        self._remove([ref for ref, had in self._pods.items() if wanted.get(ref) != had])
        for name, labels in case.namespaces.items():
            self._label_namespace(name, labels)
        self._make([each for ref, each in wanted.items() if ref not in self._pods])

    def act(self, actions: Sequence[Mapping[str, Any]]) -> None:
        """Do what a stage begins with, in order; returns when every node has it in force."""
        waiting: list[Manifest] = []
        for action in actions:
            if action["action"] in ("create_policy", "update_policy"):
                waiting.append(action["policy"])
                continue
            self._apply(waiting)
            self._act(action)
        self._apply(waiting)

    def node(self, pod: str) -> str:
        """Name of the node that a pod is on."""
        return self._nodes[pod]

    @property
    def first_pod(self) -> str:
        return next(iter(self._pods))

    def _act(self, action: Mapping[str, Any]) -> None:
        namespace = action["namespace"]
        reference = f"{namespace}/{action.get('pod', '')}"
        match action["action"]:
            case "delete_policy":
                named = [
                    key
                    for key in self._policies()
                    if (key.namespace, key.name) == (namespace, action["name"])
                ]
                assert named, f"there is no policy {namespace}/{action['name']} to delete"
                self._delete_policies(named)
            case "create_namespace" | "set_namespace_labels":
                self._label_namespace(namespace, action.get("labels") or {})
            case "delete_namespace":
                # What is in a namespace goes with it.
                self._delete_policies([key for key in self._policies() if key.namespace == namespace])
                self._remove([ref for ref, each in self._pods.items() if each.namespace == namespace])
                self._label_namespace(namespace, {})
            case "create_pod":
                self._make([pod(action, namespace, action["pod"])])
            case "set_pod_labels":
                had = self._pods[reference]
                self.lab.label(reference, _changes(had.labels, action["labels"]))
                self._pods[reference] = dataclasses.replace(had, labels=action["labels"])
            case "delete_pod":
                self._remove([reference])
            case other:
                raise AssertionError(f"the case asks for an action that this runner does not know: {other}")

    # -- policies --------------------------------------------------------------------------------------------

    def _apply(self, manifests: list[Manifest]) -> None:
        if manifests:
            texts = [self._addressed(json.dumps(manifest)) for manifest in manifests]
            apply_manifests(self.lab.cluster, "\n---\n".join(texts), timeout=ENFORCED_WITHIN)
            manifests.clear()

    def _addressed(self, text: str) -> str:
        """A manifest with addresses in the place of what stands for them."""
        rows = (
            {f"{row['namespace']}/{row['name']}": row for row in self.lab.pods()} if "{{ip:" in text else {}
        )
        found = _IP.sub(lambda match: str(next(ip for ip in rows[match[1]]["ips"] if ":" not in ip)), text)
        return found.replace("{{podcidr}}", POOL_CIDRS[4])

    def _policies(self) -> list[policy_pb2.PolicyKey]:
        request = policy_pb2.ListPoliciesRequest()
        return [each.key for each in pages(self.lab.cluster.policies.ListPolicies, request, "policies")]

    def _delete_policies(self, keys: list[policy_pb2.PolicyKey]) -> None:
        if keys:
            request = policy_pb2.DeletePoliciesRequest(keys=keys)
            deleted = self.lab.cluster.policies.DeletePolicies(request, timeout=10)
            assert len(deleted.deleted) == len(keys)
            wait_enforced(self.lab.cluster, deleted.revision, ENFORCED_WITHIN)

    # -- namespaces and pods ---------------------------------------------------------------------------------

    def _label_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        changes = _changes(self._namespaces.get(name, {}), labels)
        if changes:
            self.lab.set_namespace(name, changes)
        self._namespaces[name] = dict(labels)

    def _make(self, pods: Sequence[Pod]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for each, node in zip(pods, pool.map(self._run, pods), strict=True):
                self._pods[str(each)], self._nodes[str(each)] = each, node
        self.pods_made += len(pods)

    def _run(self, pod: Pod) -> str:
        made = self.lab.run(
            str(pod),
            labels=[f"{key}={value}" for key, value in pod.labels.items()],
            ports=[f"{name}:{number}/{protocol}" for name, number, protocol in pod.ports],
            service_account=pod.service_account,
        )
        return str(made["node"])

    def _remove(self, references: Sequence[str]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self.lab.delete, references))
        for reference in references:
            del self._pods[reference], self._nodes[reference]


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    removed = [f"{key}-" for key in before if key not in after]
    return removed + [f"{key}={value}" for key, value in after.items() if before.get(key) != value]
