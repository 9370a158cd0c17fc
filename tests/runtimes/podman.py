"""Podman's commands as the tests give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.runtimes import image
from tests.runtimes.machine import Machine, Run

PORT = "8080"


class Podman:
    """Podman on a machine."""

    def __init__(self, machine: Machine, archive: Path) -> None:
        self.machine = machine
        self("load", "--quiet", "--input", str(archive))

    def __call__(self, *arguments: str, check: bool = True) -> str:
        return self.machine.run("podman", *arguments, check=check)

    def start(self, name: str, *flags: str, labels: str = "") -> Run:
        """Begins to start a container that says its name on PORT."""
        arguments = ["run", "--detach", "--name", name, "--cgroup-parent", self.machine.cgroup, *flags]
        return self.machine.start(
            *("podman", *arguments, image.NAME, "serve", PORT, name),
            environment={"CNI_ARGS": f"FIMBRIA_LABELS={labels}"} if labels else {},
        )

    def run(self, name: str, *flags: str, labels: str = "") -> str:
        """Starts a container and returns its address."""
        self.start(name, *flags, labels=labels).output()
        return self.address(name)

    def address(self, name: str) -> str:
        """A running container's IPv4 address, as Podman tells it."""
        return str(self._network(name)["IPAddress"])

    def address6(self, name: str) -> str:
        """Its IPv6 address."""
        return str(self._network(name)["GlobalIPv6Address"])

    def _network(self, name: str) -> dict[str, Any]:
        (inspected,) = json.loads(self("inspect", name))
        found: dict[str, Any] = inspected["NetworkSettings"]["Networks"]["fimbria"]
        return found

    def ask(self, name: str, address: str) -> str:
        """What a container hears at an address, "" for nothing."""
        return self("exec", name, image.PROGRAM, "ask", address, PORT, check=False)

    def remove(self, *names: str) -> None:
        self("rm", "--force", "--time", "0", *names)

    def names(self) -> set[str]:
        """Containers that Podman knows, running or not, or that have storage of its at least."""
        return set(self("ps", "--all", "--external", "--format", "{{.Names}}").split())
