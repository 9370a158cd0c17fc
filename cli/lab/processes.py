"""Which processes a lab has, with what settings, and starting those that do not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cli.errors import CliError
from cli.lab import netns, process, underlay
from cli.lab.databases import Databases
from cli.lab.files import read_json
from cli.lab.network import Network
from cli.lab.paths import CLUSTER_SERVICES, MARK, REPOSITORY, LabPaths, netns_path
from cli.lab.process import ProcessId

READY_TIMEOUT = 30.0
# By IP version.
POOL_CIDRS = {4: "10.244.0.0/16", 6: "fd00:10:244::/56"}
# Compiled BPF objects, named by content: they outlive a lab, as other build products do.
OBJECT_CACHE = REPOSITORY / "build" / "bpf-cache"
# What the user may set for all processes of a lab; the lab sets everything else itself.
PASSED_ON = ("FIMBRIA_LOG_LEVEL", "FIMBRIA_OTLP_ENDPOINT")


@dataclass(frozen=True)
class ProcessSpec:
    """One process of the lab: a cluster service or a node's loader."""

    name: str
    module: str
    environ: Mapping[str, str]
    netns: str = ""


def specs(paths: LabPaths, nodes: Iterable[str], network: Network, replicas: int = 1) -> list[ProcessSpec]:
    """All processes of a lab with these nodes and so many replicas of each service."""
    databases = Databases(paths, replicas)
    return [
        _service(paths, service, name, network, databases)
        for service in CLUSTER_SERVICES
        for name in paths.replicas(service, replicas)
    ] + [_loader(paths, node, network, replicas) for node in nodes]


def _common(paths: LabPaths, name: str) -> dict[str, str]:
    passed = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    return passed | {
        "FIMBRIA_TRACE_FILE": str(paths.trace_file(name)),
        "FIMBRIA_READY_FILE": str(paths.ready(name)),
        "FIMBRIA_INSTANCE": name,
    }


def _service(paths: LabPaths, service: str, name: str, network: Network, databases: Databases) -> ProcessSpec:
    environ = _common(paths, name) | {
        "FIMBRIA_LISTEN": f"{paths.target(name)},127.0.0.1:0",
        "FIMBRIA_DATABASE_URL": databases.url(service),
    }
    if service == "ipam":
        environ["FIMBRIA_IPAM_DEFAULT_POOL_CIDR"] = ",".join(POOL_CIDRS[each] for each in network.families)
    if service == "policy":
        environ["FIMBRIA_IDENTITY_TARGET"] = paths.service_target("identity", databases.replicas)
    environ |= {
        variable: value
        for variable, value in network.settings.items()
        if variable.startswith(f"FIMBRIA_{service.upper()}_")
    }
    return ProcessSpec(name, f"services.{service}", environ)


def _loader(paths: LabPaths, node: str, network: Network, replicas: int) -> ProcessSpec:
    environ = _common(paths, node) | {
        **network.environ,
        "FIMBRIA_LISTEN": paths.target(node),
        "FIMBRIA_NODE_NAME": node,
        **{f"FIMBRIA_NODE_IPV{each}": underlay.node_address(node, each) for each in network.families},
        "FIMBRIA_STATE_DIR": str(paths.node(node)),
        "FIMBRIA_PIN_DIR": str(paths.pin_dir(node)),
        "FIMBRIA_CACHE_DIR": str(OBJECT_CACHE),
        "FIMBRIA_SOURCE_DIR": str(REPOSITORY / "bpf"),
        "FIMBRIA_CNI_SOCKET": str(paths.cni_socket(node)),
        "FIMBRIA_CNI_QUEUE": str(paths.cni_queue(node)),
        **{
            f"FIMBRIA_{service.upper()}_TARGET": paths.service_target(service, replicas)
            for service in CLUSTER_SERVICES
        },
    }
    return ProcessSpec(node, "services.loader", environ, paths.node_netns(node))


def running(paths: LabPaths, spec: ProcessSpec) -> ProcessId | None:
    """The process of `spec` if it is alive, and in the node's namespace as it is now."""
    recorded = ProcessId.recorded(paths.process(spec.name))
    if recorded is None or not recorded.alive:
        return None
    if spec.netns:
        try:
            if os.stat(f"/proc/{recorded.pid}/ns/net").st_ino != os.stat(netns_path(spec.netns)).st_ino:
                return None
        except FileNotFoundError:
            return None
    return recorded


def ready(paths: LabPaths, spec: ProcessSpec) -> bool:
    """True when the process that runs now has said that it serves."""
    current = running(paths, spec)
    told = read_json(paths.ready(spec.name)) if current else None
    return current is not None and isinstance(told, dict) and told.get("pid") == current.pid


def dead(paths: LabPaths, wanted: Iterable[ProcessSpec]) -> list[ProcessSpec]:
    """Those that do not run."""
    return [spec for spec in wanted if running(paths, spec) is None]


class Start:
    """Starting processes: the launcher imports while the caller makes the network; `fork` lets it go on."""

    def __init__(self, paths: LabPaths, wanted: list[ProcessSpec], lock: int) -> None:
        self._paths = paths
        self._lock = lock
        self.wanted = wanted
        self._launcher: subprocess.Popen[str] | None = None
        if wanted:
            self._launcher = self._launch()

    def _launch(self) -> subprocess.Popen[str]:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("FIMBRIA_")}
        search = [str(REPOSITORY), str(REPOSITORY / "gen"), environ.get("PYTHONPATH", "")]
        environ |= {MARK: self._paths.id, "PYTHONPATH": os.pathsep.join(filter(None, search))}
        with open(self._paths.log("launcher"), "ab") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "cli.lab.launcher",
                    *sorted({spec.module for spec in self.wanted}),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environ,
                # Until every child is on record, whoever comes next has to wait, even if this process dies.
                pass_fds=[self._lock],
                start_new_session=True,
                text=True,
            )

    def fork(self) -> None:
        """Let the processes begin: their namespaces exist now."""
        if self._launcher is None:
            return
        for spec in self.wanted:
            for stale in (
                self._paths.socket(spec.name),
                self._paths.cni_socket(spec.name),
                self._paths.ready(spec.name),
                self._paths.process(spec.name),
            ):
                stale.unlink(missing_ok=True)
        _, _ = self._launcher.communicate(json.dumps([self._job(spec) for spec in self.wanted]))
        if self._launcher.returncode != 0:
            raise self._failed("launcher", f"ended with status {self._launcher.returncode}")

    def _job(self, spec: ProcessSpec) -> dict[str, Any]:
        return {
            "name": spec.name,
            "module": spec.module,
            "environ": dict(spec.environ),
            "netns": str(netns_path(spec.netns)) if spec.netns else "",
            "log": str(self._paths.log(spec.name)),
            "record": str(self._paths.process(spec.name)),
            "lock": self._lock,
            "title": f"fimbria-{spec.name} lab {self._paths.id}",
        }

    def wait(self, wanted: Iterable[ProcessSpec], timeout: float | None = None) -> bool:
        """Return when all `wanted` serve, those that ran before too; False when one of these has died.

        CliError, with the end of its log, for one that died as it started or takes longer than `timeout` s
        (READY_TIMEOUT).
        """
        timeout = READY_TIMEOUT if timeout is None else timeout
        deadline = time.monotonic() + timeout
        waiting = list(wanted)
        while waiting:
            waiting = [spec for spec in waiting if not ready(self._paths, spec)]
            for spec in waiting:
                recorded = ProcessId.recorded(self._paths.process(spec.name))
                if recorded is not None and not recorded.alive:
                    if spec not in self.wanted:
                        return False
                    raise self._failed(spec.name, "ended while it started")
                if time.monotonic() > deadline:
                    raise self._failed(spec.name, f"does not serve after {timeout:g} s")
            if waiting:
                time.sleep(0.01)
        return True

    def abandon(self) -> None:
        """End a launcher that was not told what to fork."""
        if self._launcher is not None and self._launcher.poll() is None:
            self._launcher.kill()
            self._launcher.wait()

    def _failed(self, name: str, what: str) -> CliError:
        log = self._paths.log(name)
        lines = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        return CliError(
            f"{name} {what}: {_last_words(lines)}", reason="PROCESS_NOT_READY", hint=f"its log is {log}"
        )


def _last_words(lines: list[str]) -> str:
    """The end of a log, structured lines shortened to their event and error."""
    words = []
    for line in lines:
        try:
            entry = json.loads(line)
            told = [str(entry[key]) for key in ("event", "error", "exception") if entry.get(key)]
            words.append(": ".join(told) if told else line)
        except (ValueError, TypeError):
            words.append(line)
    return " | ".join(words) or "its log is empty"


def end_stale(paths: LabPaths, wanted: Iterable[ProcessSpec]) -> None:
    """End recorded processes that live in a namespace that has been made anew since."""
    stale = []
    for spec in wanted:
        recorded = ProcessId.recorded(paths.process(spec.name))
        if recorded is not None and recorded.alive and running(paths, spec) is None:
            stale.append(recorded)
    if stale:
        process.end(stale, grace=0)


def all_namespaces(paths: LabPaths) -> list[str]:
    """Every network namespace whose name is the lab's."""
    return netns.named(paths.netns_prefix)
