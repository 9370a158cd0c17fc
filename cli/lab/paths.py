"""Where everything of a lab is, and what it is called.

All names carry the lab's id, six hex digits of the directory's real path: two labs never meet, and
what a lab left behind can be found from its directory's name alone, whatever became of its files.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DIRECTORY = "/run/fimbria/lab"
NETNS_DIRECTORY = Path("/run/netns")
# PostgreSQL runs as a user of its own, which must be able to reach its files: a lab's directory is closed.
POSTGRES_PARENT = Path("/var/tmp")
BPFFS = Path("/sys/fs/bpf")
REPOSITORY = Path(__file__).resolve().parents[2]
# A process of a lab, and whatever it starts, carries this variable: see process.marked().
MARK = "FIMBRIA_LAB_MARK"
CLUSTER_SERVICES = ("ipam", "identity", "policy")
# Longest netns name that is used as it is; longer ones are cut and end in a hash.
LONGEST_NAME = 96


def lab_id(directory: str | os.PathLike[str]) -> str:
    """The id of the lab in `directory`: 6 hex digits."""
    return hashlib.sha256(os.path.realpath(directory).encode()).hexdigest()[:6]


@dataclass(frozen=True)
class LabPaths:
    """Names and places of one lab."""

    directory: Path
    id: str

    @classmethod
    def of(cls, directory: str | os.PathLike[str]) -> LabPaths:
        return cls(Path(os.path.realpath(directory)), lab_id(directory))

    @property
    def marker(self) -> Path:
        """Says that the directory is a lab's: made first, removed last."""
        return self.directory / ".fimbria-lab"

    @property
    def lock(self) -> Path:
        return self.directory / ".lock"

    @property
    def state(self) -> Path:
        return self.directory / "lab.json"

    @property
    def run(self) -> Path:
        """Sockets, ready files and process records."""
        return self.directory / "run"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def traces(self) -> Path:
        return self.directory / "traces"

    @property
    def data(self) -> Path:
        """Databases of the cluster services."""
        return self.directory / "data"

    @property
    def postgres(self) -> Path:
        """Everything of the PostgreSQL server of a lab with replicas; outside of the lab's directory."""
        return POSTGRES_PARENT / f"fimbria-lab-{self.id}-postgres"

    @property
    def pods(self) -> Path:
        return self.directory / "pods"

    @property
    def namespaces(self) -> Path:
        return self.directory / "namespaces"

    @property
    def nodes(self) -> Path:
        return self.directory / "nodes"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The directories that a lab makes inside its own."""
        return (self.run, self.logs, self.traces, self.data, self.pods, self.namespaces, self.nodes)

    def node(self, node: str) -> Path:
        """A loader's own directory: endpoint records, queued deletions."""
        return self.nodes / node

    def socket(self, process: str) -> Path:
        return self.run / f"{process}.sock"

    def cni_socket(self, node: str) -> Path:
        return self.run / f"{node}.cni.sock"

    def cni_queue(self, node: str) -> Path:
        """Where the plugin leaves deletions for a loader that is down."""
        return self.node(node) / "deletes"

    def target(self, process: str) -> str:
        """gRPC target of a service or of a node's loader."""
        return f"unix:{self.socket(process)}"

    def replicas(self, service: str, count: int) -> list[str]:
        """Names of a service's processes: `ipam`, `ipam-2`, `ipam-3`."""
        return [service, *(f"{service}-{number}" for number in range(2, count + 1))]

    def service_target(self, service: str, replicas: int) -> str:
        """gRPC target of a service with all its replicas: calls take turns over those that serve."""
        return "unix:" + ",".join(str(self.socket(name)) for name in self.replicas(service, replicas))

    def ready(self, process: str) -> Path:
        return self.run / f"{process}.ready.json"

    def process(self, process: str) -> Path:
        return self.run / f"{process}.process.json"

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def trace_file(self, process: str) -> Path:
        return self.traces / f"{process}.jsonl"

    @property
    def pins(self) -> Path:
        return BPFFS / "fimbria" / f"lab-{self.id}"

    def pin_dir(self, node: str) -> Path:
        return self.pins / node

    @property
    def netns_prefix(self) -> str:
        return f"fl-{self.id}-"

    @property
    def underlay_netns(self) -> str:
        return f"{self.netns_prefix}net"

    @property
    def outside_netns(self) -> str:
        """The host that is outside of the cluster."""
        return f"{self.netns_prefix}outside"

    def node_netns(self, node: str) -> str:
        return f"{self.netns_prefix}{node}"

    def pod_netns(self, namespace: str, name: str) -> str:
        """The pod's namespace; `_` is in no Kubernetes name, so no two pods and no node share one."""
        full = f"{self.netns_prefix}{namespace}_{name}"
        if len(full) <= LONGEST_NAME:
            return full
        return f"{full[: LONGEST_NAME - 11]}-{hashlib.sha256(full.encode()).hexdigest()[:10]}"


def netns_path(name: str) -> Path:
    """The file that names a network namespace."""
    return NETNS_DIRECTORY / name
