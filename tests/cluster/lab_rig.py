"""A lab as the checks of the loader's own tests see a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.lab import underlay
from cli.lab.lab import Lab
from tests.kernel.loader.rig import Node, Pod, Rig
from tests.kernel.netlink.namespaces import Namespace, Namespaces

# A runtime waits a minute for the plugin; a test that holds a process up does not.
PLUGIN_SECONDS = 6.0


class LabNode(Node):
    """A node of a lab."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.name = name
        self.ipv4 = underlay.node_address(name, 4)
        self.ipv6 = ""
        self.namespace = Namespace(lab.paths.node_netns(name))
        self.directory = lab.paths.node(name)
        self._paths = lab.paths

    def __repr__(self) -> str:
        return f"LabNode({self.name})"

    @property
    def socket(self) -> Path:
        return self._paths.cni_socket(self.name)

    @property
    def target(self) -> str:
        return self._paths.target(self.name)


class LabRig(Rig):
    """A lab that runs; starting and ending it is the lab's affair. Its own pods get no records in the lab."""

    def __init__(self, lab: Lab, namespaces: Namespaces) -> None:
        self._lab = lab
        self.namespaces = namespaces
        self.nodes = [LabNode(lab, name) for name in lab.nodes]

    def target(self, service: str) -> str:
        return self._lab.paths.target(service)

    def pins(self, node: Node) -> Path:
        return self._lab.paths.pin_dir(node.name)

    def pod(self, node: Node, name: str, **labels: str) -> Pod:
        return _Pod(node, name, self.namespaces.make(), labels)


class _Pod(Pod):
    def call(self, command: str, *, netns: str | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
        return super().call(command, netns=netns, timeout_seconds=PLUGIN_SECONDS, **more)
