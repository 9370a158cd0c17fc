# SPDX-License-Identifier: Apache-2.0
"""The published network-policy cases as clusters, documents and connections."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.policy_model.cluster import RESERVED_ENDS, Cluster, Connection, DeclaredPort, Pod

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "conformance" / "netpol_cases.json").read_text(encoding="utf-8")
)
POD_CIDR = "10.40.0.0/16"
_PLACEHOLDER = re.compile(r"\{\{ip:([^}]+)\}\}")


class Addresses:
    """Hands out pods' addresses: each pod has the same ones as long as the case lasts."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def of(self, pod: str) -> tuple[str, str]:
        number = self._given.setdefault(pod, len(self._given) + 1)
        return f"10.40.0.{number}", f"fd40::{number:x}"

    def fill(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """The manifest with addresses in the place of `{{ip:NS/POD}}` and `{{podcidr}}`."""
        text = json.dumps(manifest).replace("{{podcidr}}", POD_CIDR)
        filled: dict[str, Any] = json.loads(_PLACEHOLDER.sub(lambda found: self.of(found[1])[0], text))
        return filled


def reserved_addresses() -> dict[str, tuple[str, ...]]:
    return {end: (f"172.31.0.{number}", f"fd31::{number:x}") for number, end in enumerate(RESERVED_ENDS, 1)}


def declared(ports: list[dict[str, Any]]) -> tuple[DeclaredPort, ...]:
    found = (DeclaredPort(item["name"], item["proto"], item["port"]) for item in ports if item.get("name"))
    return tuple(sorted(found))


def cluster_of(case: dict[str, Any], addresses: Addresses) -> Cluster:
    """The cluster as it is before the first step."""
    cluster = Cluster(
        namespaces={name: dict(item["labels"]) for name, item in case["namespaces"].items()},
        node_labels=dict(case.get("nodeLabels") or {}),
        addresses=reserved_addresses(),
    )
    for item in case["pods"]:
        name = f"{item['ns']}/{item['name']}"
        cluster.put(
            Pod(
                item["ns"],
                item["name"],
                dict(item["labels"]),
                declared(item["ports"]),
                addresses.of(name),
                item.get("serviceAccount") or "",
            )
        )
    return cluster


def act(cluster: Cluster, action: dict[str, Any], addresses: Addresses) -> None:
    """Do one of the actions that are about namespaces and pods; those about policies are the caller's."""
    namespace = action.get("namespace", "")
    match action["action"]:
        case "create_namespace" | "set_namespace_labels":
            cluster.namespaces[namespace] = dict(action["labels"])
        case "delete_namespace":
            del cluster.namespaces[namespace]
            for name in [name for name, pod in cluster.pods.items() if pod.namespace == namespace]:
                del cluster.pods[name]
        case "create_pod":
            name = f"{namespace}/{action['pod']}"
            ports = declared(action.get("ports") or [])
            cluster.put(Pod(namespace, action["pod"], dict(action["labels"]), ports, addresses.of(name)))
        case "set_pod_labels":
            old = cluster.pods[f"{namespace}/{action['pod']}"]
            cluster.put(
                Pod(
                    namespace, old.name, dict(action["labels"]), old.ports, old.addresses, old.service_account
                )
            )
        case "delete_pod":
            del cluster.pods[f"{namespace}/{action['pod']}"]
        case other:
            raise ValueError(f"got the action {other!r}, expected one about namespaces or pods")


def connection_of(probe: dict[str, Any]) -> Connection:
    return Connection(probe["from"], probe["to"], probe["proto"], probe["port"])


def rounds(case: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """(where, actions, probes): the case's first probes, then step by step."""
    first = [{"action": "create_policy", "policy": manifest} for manifest in case["policies"]]
    yield "at first", first, case["probes"]
    for number, step in enumerate(case.get("steps", []), 1):
        yield f"after step {number}", step["actions"], step["probes"]
