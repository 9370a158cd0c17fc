"""What is measured of Fimbria itself: the lab's start, CNI ADD, policy, traffic between its pods, memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from cli.commands.policy import apply_manifests
from cli.lab.lab import Lab
from cli.lab.preflight import CNI_PLUGIN
from tests.bench.cni import Plugin
from tests.bench.peers import Path as TrafficPath

# Both ends are selected, so that either node has entries to write.
_POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
specs:
  - endpointSelector: {matchLabels: {app: web}}
    ingress:
      - fromEndpoints: [{matchLabels: {app: client}}]
        toPorts: [{ports: [{port: "PORT", protocol: TCP}]}]
  - endpointSelector: {matchLabels: {app: client}}
    egress:
      - toEndpoints: [{matchLabels: {app: web}}]
        toPorts: [{ports: [{port: "PORT", protocol: TCP}]}]
"""


@contextlib.contextmanager
def lab(directory: Path) -> Iterator[Lab]:
    """A two-node lab that is taken down at the end."""
    made = Lab(directory, tell=lambda _line: None)
    try:
        made.up(nodes=2)
        yield made
    finally:
        made.down()


def lab_up_seconds(directory: Path) -> float:
    """Seconds that `fimbria lab up` takes from its fork to its exit, with two nodes, from nothing."""
    command = [sys.executable, "-m", "cli", "lab", "up", "--nodes", "2", "--dir", str(directory)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    elapsed = time.perf_counter() - start
    Lab(directory, tell=lambda _line: None).down()
    return elapsed


def plugin(lab: Lab, node: str) -> Plugin:
    """The CNI plugin as the lab's runtime runs it on a node."""

    def config(number: int) -> dict[str, object]:
        return {
            "cniVersion": "1.0.0",
            "name": "fimbria",
            "type": "fimbria-cni",
            "socket": str(lab.paths.cni_socket(node)),
            "queue": str(lab.paths.cni_queue(node)),
            "args": {"cni": {"labels": [{"key": "app", "value": f"bench-{number}"}]}},
        }

    return Plugin(CNI_PLUGIN, lab.paths.node_netns(node), config)


def endpoint_setup_ms(lab: Lab, node: str) -> list[float]:
    """Milliseconds that each ADD on the node spent on map writes and the attachment of programs."""
    wanted = {"bpf.maps.sync", "bpf.attach"}
    parents: dict[str, str] = {}
    spent: dict[str, float] = defaultdict(float)
    for line in lab.paths.trace_file(node).read_text().splitlines():
        span = json.loads(line)
        if span["name"] == "endpoint.regenerate" and span["attributes"].get("level") == "reload":
            parents[span["span_id"]] = span["trace_id"]
        elif span["name"] in wanted:
            spent[span["parent_id"]] += (span["end_ns"] - span["start_ns"]) / 1e6
    return [spent[span_id] for span_id in parents]


def policy_apply_ms(lab: Lab, rounds: int) -> list[float]:
    """Milliseconds from the call of ApplyPolicies to the return of WaitEnforced, a change each time."""
    samples = []
    for number in range(rounds):
        changed = _POLICY.replace("PORT", str(8000 + number))
        start = time.perf_counter()
        answer = apply_manifests(lab.cluster, changed)
        samples.append((time.perf_counter() - start) * 1e3)
        nodes = {entry["node"] for entry in answer["enforced"]}
        if nodes != set(lab.nodes):
            raise RuntimeError(f"policy was enforced on {sorted(nodes)}, expected {lab.nodes}")
    return samples


def pods(lab: Lab) -> tuple[TrafficPath, TrafficPath]:
    """Pods to send traffic between: the paths within node-1, and from node-2 to node-1."""
    rows = [
        lab.run(f"bench/{name}", node=node, labels=[f"app={name}"])
        for name, node in (("server", "node-1"), ("near", "node-1"), ("far", "node-2"))
    ]
    server, near, far = rows
    address = str(server["ips"][0])
    return (
        TrafficPath(str(server["netns"]), str(near["netns"]), address),
        TrafficPath(str(server["netns"]), str(far["netns"]), address),
    )


def resident_mb(lab: Lab) -> dict[str, float]:
    """Resident memory of each process of the lab, in MB."""
    page = os.sysconf("SC_PAGE_SIZE")
    names = ["ipam", "identity", "policy", *lab.nodes]
    return {
        name: int(Path(f"/proc/{lab.process(name).pid}/statm").read_text().split()[1]) * page / 1e6
        for name in names
    }
