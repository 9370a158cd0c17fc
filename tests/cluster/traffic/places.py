"""Where the traffic of these tests begins and ends: pods, nodes, the world, and the host outside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cli.lab import netns, underlay
from cli.lab.lab import Lab
from cli.lab.paths import MARK, netns_path

T = TypeVar("T")
FAMILIES = (4, 6)
WEB, NEAR, FAR = "traffic/web", "traffic/near", "traffic/far"
PODS = {WEB: "node-1", NEAR: "node-1", FAR: "node-2"}
# Who asks web: a pod of its own node, and one of another.
ASKERS = {"same-node": NEAR, "across": FAR}
COMMAND_TIMEOUT = 30.0
WAIT = 15.0


@dataclass(frozen=True)
class Place:
    """A network namespace of a lab, and its addresses by IP version."""

    name: str
    netns: str
    addresses: dict[int, str]
    mark: str

    @property
    def path(self) -> Path:
        return netns_path(self.netns)

    def inside(self, work: Callable[[], T]) -> T:
        """Do `work` in the namespace; sockets that it makes stay there."""
        return netns.run_in(self.path, work)

    def run(self, *command: str, code: int | None = 0, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a command there; what it printed. Its exit code has to be `code`, unless that is None."""
        done = subprocess.run(
            self._entering(command),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=self._environ(),
            stdin=subprocess.DEVNULL,
        )
        told = f"$ {' '.join(command)}   # in {self.name}\n{done.stdout}{done.stderr}"
        assert code is None or done.returncode == code, f"{told}\nexit code {done.returncode}"
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator[None]:
        """A command runs there for the duration of the block."""
        process = subprocess.Popen(
            self._entering(command),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environ(),
            stdin=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def ip(self, *arguments: str) -> str:
        """Run `ip` there."""
        return netns.ip(*arguments, netns=self.netns)

    def set_sysctl(self, name: str, value: str) -> None:
        """Write /proc/sys/net/NAME there."""
        self.inside(lambda: Path(f"/proc/sys/net/{name}").write_text(value))

    def await_listener(self, protocol: str, port: int) -> None:
        """Wait until some socket there is bound to a port: "tcp" (and listens) or "udp"."""
        option = "-tln" if protocol == "tcp" else "-uln"
        poll(
            lambda: bool(self.run("ss", "-H", option, f"sport = :{port}").strip()),
            f"somebody listens on {port}/{protocol} in {self.name}",
        )

    def _entering(self, command: Sequence[str]) -> list[str]:
        # nsenter changes nothing but the network: /sys with bpffs stays as it is.
        return ["nsenter", f"--net={self.path}", "--", *command]

    def _environ(self) -> dict[str, str]:
        # By the mark the lab ends what a test that was killed has left running.
        return {**os.environ, MARK: self.mark, "LC_ALL": "C"}


@dataclass(frozen=True)
class Places:
    """All places of a lab."""

    lab: Lab
    pods: dict[str, Place]
    nodes: dict[str, Place]
    world: Place
    outside: Place

    def __getitem__(self, name: str) -> Place:
        return self.pods.get(name) or self.nodes[name]

    def node_of(self, pod: str) -> Place:
        """The node of one of the pods."""
        return self.nodes[PODS[pod]]

    def pod_row(self, pod: str) -> dict[str, object]:
        """A pod's row of `lab list`."""
        return next(row for row in self.lab.pods() if f"{row['namespace']}/{row['name']}" == pod)


def populate(lab: Lab) -> Places:
    """Make the pods in a lab that is up; all its places."""
    pods = {pod: make_pod(lab, pod, node) for pod, node in PODS.items()}
    paths = lab.paths
    families = lab.network.families
    nodes = {
        node: Place(
            node,
            paths.node_netns(node),
            {each: underlay.node_address(node, each) for each in families},
            paths.id,
        )
        for node in lab.nodes
    }
    for node in nodes.values():
        # What goes hop by hop asks a node for more errors in a second than it gives one address.
        node.set_sysctl("ipv4/icmp_ratelimit", "0")
        node.set_sysctl("ipv6/icmp/ratelimit", "0")
    world = Place("world", paths.underlay_netns, underlay.GATEWAY, paths.id)
    outside = Place("outside", paths.outside_netns, underlay.OUTSIDE_HOST, paths.id)
    for place in (world, outside):
        place.set_sysctl("ipv4/icmp_ratelimit", "0")
        place.set_sysctl("ipv6/icmp/ratelimit", "0")
    return Places(lab, pods, nodes, world, outside)


def make_pod(lab: Lab, pod: str, node: str) -> Place:
    """Run a pod, labelled with its name."""
    row = lab.run(pod, node=node, labels=[f"app={pod.partition('/')[2]}"])
    addresses = {6 if ":" in ip else 4: ip for ip in row["ips"]}
    return Place(pod, row["netns"].rpartition("/")[2], addresses, lab.paths.id)


def default_route(place: Place, family: int) -> dict[str, object]:
    """A pod's default route as `ip -j` shows it."""
    (route,) = json.loads(place.ip("-j", f"-{family}", "route", "show", "default"))
    return dict(route)


def poll(condition: Callable[[], T], what: str, seconds: float = WAIT) -> T:
    """Wait until `condition` holds; its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
