"""CNI ADD and DEL as a runtime runs them: a process, an environment, a config on standard input."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.namespaces import netns_path, within


@dataclass(frozen=True)
class Plugin:
    """A CNI plugin with its network config. `node_netns` is the named namespace that it runs in (the node's);
    `config` makes the config of the n-th pod."""

    binary: Path
    node_netns: str
    config: Callable[[int], Mapping[str, object]]
    cni_path: str = "/usr/lib/cni"


def call(plugin: Plugin, command: str, number: int, pod_netns: str) -> float:
    """Runs one CNI command and returns the milliseconds from the fork to the exit.

    Raises RuntimeError with the plugin's words when it fails."""
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": f"bench{os.getpid()}x{number}",
        "CNI_NETNS": netns_path(pod_netns),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": plugin.cni_path,
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=pod-{number}",
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin"),
    }
    config = json.dumps(plugin.config(number)).encode()

    def execute() -> tuple[float, subprocess.CompletedProcess[bytes]]:
        start = time.perf_counter()
        done = subprocess.run(
            [str(plugin.binary)], input=config, env=environment, capture_output=True, check=False
        )
        return (time.perf_counter() - start) * 1e3, done

    elapsed, done = within(plugin.node_netns, execute)
    if done.returncode:
        raise RuntimeError(
            f"{plugin.binary.name} {command}: exit {done.returncode}: "
            f"{done.stdout.decode()} {done.stderr.decode()}"
        )
    return elapsed


def ptp(node_netns: str, data_directory: Path) -> Plugin:
    """Debian's ptp plugin with host-local addresses: a routed veth per pod, no policy, no identity."""
    config: dict[str, object] = {
        "cniVersion": "1.0.0",
        "name": f"fbench-{os.getpid()}",
        "type": "ptp",
        "ipMasq": False,
        "mtu": 1500,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.98.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(data_directory),
        },
    }
    return Plugin(Path("/usr/lib/cni/ptp"), node_netns, lambda _number: config)
