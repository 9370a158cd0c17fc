"""A list of plugins executed as libcni does it: in order, each given what those before it made."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kernel.loader.rig import PLUGIN, Node
from tests.kernel.netlink.namespaces import Namespace

REFERENCE_PLUGINS = Path("/usr/lib/cni")


class ChainError(Exception):
    """A plugin refused; ``plugin`` is which, ``answer`` its error."""

    def __init__(self, plugin: str, answer: Mapping[str, Any]) -> None:
        super().__init__(f"{plugin}: {answer}")
        self.plugin = plugin
        self.code = answer.get("code")
        self.msg = str(answer.get("msg"))


def fimbria(node: Node, **members: Any) -> dict[str, Any]:
    """Fimbria's own entry in a list."""
    return {
        "type": PLUGIN.name,
        "socket": str(node.socket),
        "queue": str(node.directory / "deletes"),
        **members,
    }


@dataclass
class Network:
    """A network configuration list on a node, and what a runtime remembers of its attachments."""

    node: Node
    plugins: Sequence[Mapping[str, Any]]
    name: str = "fimbria"
    version: str = "1.0.0"
    results: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def add(self, container: str, pod: Namespace, ifname: str = "eth0", **runtime: Any) -> dict[str, Any]:
        """ADD; the last plugin's result. ``runtime`` are capability arguments. Raises ChainError."""
        result: dict[str, Any] = {}
        for plugin in self.plugins:
            prev = {"prevResult": result} if result else {}
            result = self._execute("ADD", plugin, container, pod.path, ifname, runtime, prev)
        self.results[(container, ifname)] = result
        return result

    def check(self, container: str, pod: Namespace, ifname: str = "eth0", **runtime: Any) -> None:
        """CHECK. Raises ChainError."""
        prev = {"prevResult": self.results[(container, ifname)]}
        for plugin in self.plugins:
            self._execute("CHECK", plugin, container, pod.path, ifname, runtime, prev)

    def delete(self, container: str, pod: Namespace | None, ifname: str = "eth0", **runtime: Any) -> None:
        """DEL, the last plugin first. Raises ChainError."""
        known = self.results.pop((container, ifname), None)
        prev = {"prevResult": known} if known else {}
        for plugin in reversed(self.plugins):
            self._execute("DEL", plugin, container, pod.path if pod else "", ifname, runtime, prev)

    def call(self, command: str, **members: Any) -> None:
        """STATUS or GC of every plugin. Raises ChainError."""
        for plugin in self.plugins:
            self._execute(command, plugin, "", "", "", {}, members)

    def _execute(
        self,
        command: str,
        plugin: Mapping[str, Any],
        container: str,
        netns: str,
        ifname: str,
        runtime: Mapping[str, Any],
        more: Mapping[str, Any],
    ) -> dict[str, Any]:
        config = {key: value for key, value in plugin.items() if key != "capabilities"}
        config |= {"cniVersion": self.version, "name": self.name, **more}
        wanted = {key: value for key, value in runtime.items() if plugin.get("capabilities", {}).get(key)}
        if wanted:
            config["runtimeConfig"] = wanted
        binary = PLUGIN if plugin["type"] == PLUGIN.name else REFERENCE_PLUGINS / plugin["type"]
        done = subprocess.run(
            ["nsenter", f"--net={self.node.namespace.path}", "--", str(binary)],
            input=json.dumps(config).encode(),
            capture_output=True,
            timeout=60,
            check=False,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": container,
                "CNI_NETNS": netns,
                "CNI_IFNAME": ifname,
                "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={container}",
                "CNI_PATH": f"{PLUGIN.parent}:{REFERENCE_PLUGINS}",
            },
        )
        answer: dict[str, Any] = json.loads(done.stdout or b"{}")
        if done.returncode:
            raise ChainError(str(plugin["type"]), answer or {"msg": done.stderr.decode()})
        return answer
