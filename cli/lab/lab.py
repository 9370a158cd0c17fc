"""A lab as a whole: up, down, its state, and its pods. Tests use this class in their own process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cli.errors import BadInput, CliError, ServiceUnavailable
from cli.lab import directory, preflight, processes, sweep, underlay
from cli.lab.databases import SERVER, Databases, check_replicas
from cli.lab.files import locked, read_json, write_json
from cli.lab.network import Asked, Network, choose, of_state
from cli.lab.paths import LabPaths
from cli.lab.pods import Pod, PodStore
from cli.lab.process import ProcessId
from cli.lab.syntax import (
    check_namespace,
    parse_annotation_changes,
    parse_annotations,
    parse_label_changes,
    parse_labels,
    parse_named_ports,
    parse_pod,
)

if TYPE_CHECKING:
    from cli.client import Cluster
    from cli.lab.probing import ProbeResult
    from cli.lab.runtime import Runtime

DEFAULT_NODES = 2
STATE_VERSION = 1
RECONNECT_TIMEOUT = 10.0
# A process may be dying when it is looked at: then it is started in the next round.
START_ATTEMPTS = 3


class Lab:
    """The lab in a directory. Nothing is made before `up`.

    `tell` gets one line for each thing that the user should know and that is no error.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, tell: Callable[[str], None] | None = None
    ) -> None:
        self.paths = LabPaths.of(directory)
        self._cluster: Cluster | None = None
        self._tell = tell or (lambda line: print(line, file=sys.stderr))

    # -- the whole -------------------------------------------------------------------------------------------

    def up(
        self, nodes: int | None = None, network: Asked = Asked(), replicas: int | None = None
    ) -> dict[str, Any]:
        """Start what does not run and return when everything serves; the state. Any number of times.

        With more than one of `replicas` (of each service) they share a PostgreSQL server of the lab's own.

        Raises BadInput for a directory that is not a lab's, fewer nodes than there are or another network or
        number of replicas than there is, CliError when the machine lacks something or a process does not
        start.
        """
        if nodes is not None and not 1 <= nodes <= underlay.MOST_NODES:
            raise BadInput(f"--nodes {nodes} is not valid: expected 1 to {underlay.MOST_NODES}")
        if replicas is not None:
            check_replicas(replicas)
        preflight.check()
        with directory.claimed(self.paths, underlay.node_name(underlay.MOST_NODES)) as lock:
            state = self._state(nodes, network, replicas)
            self._start(state["nodes"], lock)
            self._settle()
            return state

    def down(self) -> sweep.Swept:
        """Remove everything that the lab made, in whatever state it is."""
        self._close()
        swept = sweep.remove(self.paths)
        sweep.require_removed(self.paths)
        return swept

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes. ServiceUnavailable when there is no lab."""
        return list(self._stored()["nodes"])

    @property
    def network(self) -> Network:
        """How the nodes are connected. ServiceUnavailable when there is no lab."""
        return of_state(self._stored())

    @property
    def replicas(self) -> int:
        """How many processes each service has. ServiceUnavailable when there is no lab."""
        return int(self._stored().get("replicas", 1))

    @property
    def _databases(self) -> Databases:
        return Databases(self.paths, self.replicas)

    def _stored(self) -> dict[str, Any]:
        state = read_json(self.paths.state)
        if state is None:
            raise ServiceUnavailable(
                f"there is no lab in {self.paths.directory}",
                reason="NO_CLUSTER",
                hint="`fimbria lab up` starts one",
            )
        return dict(state)

    def _specs(self) -> list[processes.ProcessSpec]:
        return processes.specs(self.paths, self.nodes, self.network, self.replicas)

    def status(self) -> list[dict[str, Any]]:
        """Every process: name, pid, whether it runs and serves, where it listens, its log."""
        rows = []
        for spec in self._specs():
            found = processes.running(self.paths, spec)
            told = read_json(self.paths.ready(spec.name)) or {}
            rows.append(
                {
                    "name": spec.name,
                    "state": "serving"
                    if processes.ready(self.paths, spec)
                    else "starting"
                    if found
                    else "dead",
                    "pid": found.pid if found else None,
                    "addresses": told.get("addresses", []) if found else [],
                    "netns": spec.netns or None,
                    "log": str(self.paths.log(spec.name)),
                }
            )
        if self._databases.shared:
            rows.append(self._server_row())
        return rows

    def _server_row(self) -> dict[str, Any]:
        server, found = self._databases.server, self._databases.process
        return {
            "name": SERVER,
            "state": "serving" if found and self._databases.answers else "starting" if found else "dead",
            "pid": found.pid if found else None,
            "addresses": [f"unix:{server.socket_directory}"] if found else [],
            "netns": None,
            "log": str(server.log),
        }

    def process(self, name: str) -> ProcessId:
        """The running process of a replica of a service (`ipam`, `ipam-2`), a node's loader or the PostgreSQL
        server (`postgres`); CliError when it is dead.
        """
        if name == SERVER and (server := self._databases.process):
            return server
        for spec in self._specs():
            if spec.name == name and (found := processes.running(self.paths, spec)):
                return found
        raise CliError(f"{name} does not run", reason="PROCESS_DEAD", hint="`fimbria lab up` starts it")

    # -- pods ------------------------------------------------------------------------------------------------

    def run(
        self,
        pod: str,
        *,
        node: str = "",
        labels: Sequence[str] = (),
        ports: Sequence[str] = (),
        service_account: str = "",
        annotations: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Make the pod `NS/NAME`; its row of `list`. Processes that have died are started again first."""
        ref = parse_pod(pod)
        parsed_labels = parse_labels(list(labels))
        parsed_ports = parse_named_ports(list(ports))
        parsed_annotations = parse_annotations(list(annotations))
        self._revive()
        with self._shared():
            made = self.runtime.run(
                ref,
                node=node,
                labels=parsed_labels,
                ports=parsed_ports,
                service_account=service_account,
                annotations=parsed_annotations,
            )
        return self._row(made)

    def delete(self, pod: str) -> None:
        """Remove the pod `NS/NAME` and what runs in it."""
        ref = parse_pod(pod)
        self.nodes  # noqa: B018 - refuses a directory without a lab
        with self._shared():
            self.runtime.delete(ref)

    def label(self, pod: str, changes: Sequence[str]) -> dict[str, Any]:
        """Apply `k=v` and `k-` to a pod's labels; returns when every node has it in force."""
        ref = parse_pod(pod)
        parsed = parse_label_changes(list(changes))
        self.nodes  # noqa: B018
        with self._shared():
            return self._row(self.runtime.label(ref, parsed))

    def set_namespace(self, namespace: str, changes: Sequence[str]) -> dict[str, str]:
        """Apply `k=v` and `k-` to a namespace's labels; returns when every node has it in force."""
        check_namespace(namespace)
        parsed = parse_label_changes(list(changes))
        self.nodes  # noqa: B018
        with self._shared():
            return self.runtime.label_namespace(namespace, parsed)

    def annotate_namespace(self, namespace: str, changes: Sequence[str]) -> dict[str, str]:
        """Apply `k=v` and `k-` to a namespace's annotations, for pods that are made from then on."""
        check_namespace(namespace)
        parsed = parse_annotation_changes(list(changes))
        self.nodes  # noqa: B018
        with self._shared():
            return self.runtime.annotate_namespace(namespace, parsed)

    def pods(self) -> list[dict[str, Any]]:
        """All pods: namespace, name, node, netns, ips, labels, ports, endpoint_id, identity and more."""
        self.nodes  # noqa: B018
        return self.runtime.rows()

    def command(self, pod: str, arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command in the network namespace of a pod; it ends with the pod at the latest."""
        return self.runtime.command(parse_pod(pod), arguments, **options)

    def probe_many(
        self,
        probes: Sequence[tuple[str, str, int, str]],
        *,
        family: int | None = None,
        timeout: float | None = None,
    ) -> Sequence[ProbeResult]:
        """Try connections (from, to, port, protocol), all at once; verdicts without reasons.

        `family` is 4 or 6; None is that of the address that a probe names, else 4.
        """
        from cli.lab import probing

        return probing.probe_many(self, probes, family=family, timeout=timeout)

    def probe(
        self,
        source: str,
        target: str,
        port: int,
        protocol: str,
        *,
        family: int | None = None,
        timeout: float | None = None,
    ) -> ProbeResult:
        """Try one connection; allowed or denied, and why."""
        from cli.lab import probing

        return probing.probe(self, source, target, port, protocol, family=family, timeout=timeout)

    @property
    def cluster(self) -> Cluster:
        """The clients of the lab's services, and of the nodes that it has now."""
        from cli.client import Cluster
        from cli.targets import resolve

        targets = resolve(str(self.paths.directory), environ={})
        if self._cluster is None or self._cluster.targets != targets:
            self._close()
            self._cluster = Cluster(targets)
        return self._cluster

    @property
    def store(self) -> PodStore:
        """The records of the lab's pods and namespaces."""
        return PodStore(self.paths)

    @property
    def runtime(self) -> Runtime:
        from cli.lab.runtime import Runtime

        return Runtime(self.paths, self.nodes, self.cluster)

    # -- inside ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _shared(self) -> Iterator[None]:
        """Hold off `lab up` and `lab down` while pods are changed; pods do not hold off each other."""
        try:
            with locked(self.paths.lock, shared=True):
                yield
        except FileNotFoundError as error:
            if self.paths.marker.exists():
                raise
            raise ServiceUnavailable(
                f"there is no lab in {self.paths.directory}",
                reason="NO_CLUSTER",
                hint="`fimbria lab up` starts one",
            ) from error

    def _state(self, nodes: int | None, asked: Asked, replicas: int | None) -> dict[str, Any]:
        state = read_json(self.paths.state)
        network = choose(state, asked)
        had = len(state["nodes"]) if state else 0
        wanted = nodes if nodes is not None else had or DEFAULT_NODES
        if wanted < had:
            raise BadInput(
                f"the lab has {had} nodes, not {wanted}: a lab does not shrink",
                reason="NODES_FEWER",
                hint="`fimbria lab down` first",
            )
        count = state.get("replicas", 1) if state else replicas or 1
        if replicas not in (None, count):
            raise BadInput(
                f"the lab's services have {count} replicas each, not {replicas}: a lab keeps its stores",
                reason="REPLICAS_DIFFER",
                hint="`fimbria lab down` first",
            )
        if state is None or wanted != had:
            names = [underlay.node_name(number) for number in range(1, wanted + 1)]
            state = {
                "version": STATE_VERSION,
                "lab": self.paths.id,
                "nodes": names,
                "network": network.stored(),
                "replicas": count,
            }
            write_json(self.paths.state, state)
        return dict(state)

    def _start(self, nodes: list[str], lock: int) -> None:
        """Start the processes that do not run, and wait until all serve."""
        for node in nodes:
            self.paths.cni_queue(node).mkdir(mode=0o700, parents=True, exist_ok=True)
        wanted = self._specs()
        for _ in range(START_ATTEMPTS):
            if self._start_dead(wanted, lock):
                return
        raise CliError("processes die faster than they can be started", reason="PROCESS_NOT_READY")

    def _start_dead(self, wanted: list[processes.ProcessSpec], lock: int) -> bool:
        """Start what is dead and wait; False if one that ran before has died or lost its namespace."""
        start = processes.Start(self.paths, processes.dead(self.paths, wanted), lock)
        try:
            nodes = [spec.name for spec in wanted if spec.netns]
            underlay.ensure(self.paths, nodes, self.network.families)
            self._databases.start()
            if start.wanted != processes.dead(self.paths, wanted):
                # A node's namespace had to be made again: its loader lives in the old one.
                processes.end_stale(self.paths, wanted)
                return False
            start.fork()
            self.cluster  # noqa: B018 - imports gRPC while the processes start
            return start.wait(wanted)
        finally:
            start.abandon()

    def _settle(self) -> None:
        """Wait until the nodes know each other, tell the world their CIDRs, finish what was interrupted."""
        from fimbria.ipam.v1 import ipam_pb2
        from fimbria.loader.v1 import loader_pb2

        from cli.client import call

        listed = call(self.cluster.nodes.ListNodes, ipam_pb2.ListNodesRequest(page_size=1000))
        request = loader_pb2.WaitAppliedRequest(node_revision=listed.revision)
        for node in self.nodes:
            self._reconnected(node)
            call(self.cluster.datapath(node).WaitApplied, request, timeout=35)
        underlay.route(self.paths, {node.name: list(node.pod_cidrs) for node in listed.nodes})
        for line in self.runtime.recover():
            self._tell(line)

    def _reconnected(self, node: str) -> None:
        """Wait until a loader has found the services again: a moment after one of them was started anew."""
        from fimbria.loader.v1 import loader_pb2

        from cli.client import call

        deadline = time.monotonic() + RECONNECT_TIMEOUT
        while True:
            status = call(self.cluster.datapath(node).GetStatus, loader_pb2.GetStatusRequest())
            waiting = [watch for watch in status.watches if not watch.connected]
            if not waiting:
                return
            if time.monotonic() > deadline:
                self._tell(f"warning: {node} is not connected to {waiting[0].name}: {waiting[0].error}")
                return
            time.sleep(0.02)

    def _revive(self) -> None:
        """Start again what has died, as `up` would."""
        wanted = self._specs()
        if self._databases.missing or not all(processes.ready(self.paths, spec) for spec in wanted):
            self.up()

    def _row(self, pod: Pod) -> dict[str, Any]:
        rows = {(row["namespace"], row["name"]): row for row in self.runtime.rows()}
        return rows[(pod.ref.namespace, pod.ref.name)]

    def _close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None
