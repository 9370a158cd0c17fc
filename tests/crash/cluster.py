"""Two nodes whose first loader dies again and again, pods that talk meanwhile, and what must hold then."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
from fimbria.loader.v1 import loader_pb2, loader_pb2_grpc
from fimbria.policy.v1 import policy_pb2, policy_pb2_grpc

from services.loader.failpoints import VARIABLE
from tests.crash.flows import Flow, FlowKind, Traffic, show, traffic
from tests.crash.invariants import Expected, every_problem, quick_problems
from tests.kernel.loader.rig import DUAL_POOL, ONLY_CLIENT, Node, Pod, Rig
from tests.kernel.netlink.namespaces import Namespace, Namespaces

# How long a node may take to become consistent after its loader serves.
SETTLE_SECONDS = 15.0
# Loading may begin with clang, and others may want the processors too.
RELOAD_SECONDS = 60.0
_PORTS = itertools.count(9000)

# What answers a client passes only as long as the flow is remembered.
NOTHING_TO_CLIENTS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: shop}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Ingress]
"""

# From one port to the other this both widens and narrows what web lets in: it goes by another instance.
TCP_FROM_STRANGERS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: more, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  policyTypes: [Ingress]
  ingress:
  - from: [{{podSelector: {{matchLabels: {{app: stranger}}}}}}]
    ports: [{{port: {port}, protocol: TCP}}]
"""

TCP_FROM_ADDRESS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: by-address, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  policyTypes: [Ingress]
  ingress:
  - from: [{{ipBlock: {{cidr: {address}/32}}}}]
    ports: [{{port: {port}, protocol: TCP}}]
"""


class CrashCluster:
    """The cluster of one test module.

    ``web``, ``near`` (a client) and ``outsider`` (a stranger) are on the node whose loader dies, ``client``
    and ``stranger`` on the other one.
    """

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.node, self.other = rig.nodes
        self.expected = Expected()
        self.traffic: Traffic
        self._failpoints = self.node.directory / "failpoints"
        self._failpoints.mkdir()
        self.node.loader.environment = {VARIABLE: str(self._failpoints)}

    def start(self) -> None:
        """Starts everything, with pods and policies."""
        self.rig.start()
        self.rig.apply(ONLY_CLIENT)
        self.rig.apply(NOTHING_TO_CLIENTS)
        self.rig.apply(TCP_FROM_STRANGERS.format(port=7000))
        self.web = self.add("web", app="web")
        self.near = self.add("near", app="client")
        self.outsider = self.add("outsider", app="stranger")
        self.client = self.add("client", node=self.other, app="client")
        self.stranger = self.add("stranger", node=self.other, app="stranger")

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """Traffic for as long as the block lasts."""

        def flow(
            name: str,
            kind: FlowKind,
            source: Pod,
            interval: float,
            target: Pod | None = None,
            *,
            v6: bool = False,
            opened: bool = False,
        ) -> Flow:
            to = target or self.web
            passes = source not in (self.stranger, self.outsider) and not (to is self.near and not opened)
            return Flow(
                name,
                kind,
                source.namespace.path,
                to.namespace.path,
                to.ipv6 if v6 else to.ipv4,
                next(_PORTS),
                interval,
                passes,
                (source.ipv6 if v6 else source.ipv4) if opened else "",
            )

        # About a thousand packets a second, and their answers.
        flows = [
            flow("local", "udp", self.near, 0.004),
            flow("remote", "udp", self.client, 0.004),
            flow("outward", "udp", self.web, 0.008, self.stranger, v6=True),
            flow("local-answers", "udp", self.web, 0.008, self.near, opened=True),
            flow("remote-answers", "udp", self.web, 0.008, self.client, v6=True, opened=True),
            flow("unasked", "fresh", self.web, 0.016, self.near),
            flow("local-new", "fresh", self.near, 0.008, v6=True),
            flow("remote-new", "fresh", self.client, 0.008),
            flow("local-denied", "fresh", self.outsider, 0.008),
            flow("remote-denied", "fresh", self.stranger, 0.008, v6=True),
            flow("connection", "tcp", self.client, 0.01, v6=True),
        ]
        with traffic(flows) as self.traffic:
            yield

    # -- what a runtime does

    def add(self, name: str, *, node: Node | None = None, **labels: str) -> Pod:
        """A pod, added; from then on it is expected to be there."""
        pod = self.rig.pod(node or self.node, name, **labels)
        pod.add()
        self.expected.there.add(pod.container_id)
        return pod

    # -- what an operator does

    def apply(self, manifest: str) -> None:
        """Applies a policy; whether every node enforces it is another question."""
        with grpc.insecure_channel(self.rig.target("policy")) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            stub.ApplyPolicies(policy_pb2.ApplyPoliciesRequest(manifests=manifest), timeout=10)

    def remove(self, manifest: str) -> None:
        """Deletes a policy; one that is not there is fine."""
        with grpc.insecure_channel(self.rig.target("policy")) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            stub.DeletePolicies(policy_pb2.DeletePoliciesRequest(manifests=manifest), timeout=10)

    def enforced(self) -> None:
        """Returns when every node enforces all policies there are."""
        with grpc.insecure_channel(self.rig.target("policy")) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            listed = stub.ListPolicies(policy_pb2.ListPoliciesRequest(), timeout=10)
            request = policy_pb2.WaitEnforcedRequest(revision=listed.revision)
            stub.WaitEnforced(request, timeout=SETTLE_SECONDS)

    def relabel(self, pod: Pod, *labels: str) -> None:
        """Gives a pod these labels beside those that it was made with. Raises grpc.RpcError."""
        found = next(each for each in pod.node.endpoints() if each.container_id == pod.container_id)
        kept = [label for label in found.labels if not label.startswith("k8s:turn=")]
        pod.node.update_labels(found.id, [*kept, *labels])

    def resize(self, name: str, entries: int) -> None:
        """Gives a map another size. Raises grpc.RpcError."""
        with grpc.insecure_channel(self.node.target) as channel:
            stub = loader_pb2_grpc.DatapathServiceStub(channel)
            stub.ResizeMap(loader_pb2.ResizeMapRequest(map=name, max_entries=entries), timeout=RELOAD_SECONDS)

    def reload(self, level: int = loader_pb2.REGENERATION_LEVEL_REBUILD) -> loader_pb2.ReloadResponse:
        """Loads the programs anew. Raises grpc.RpcError."""
        with grpc.insecure_channel(self.node.target) as channel:
            stub = loader_pb2_grpc.DatapathServiceStub(channel)
            return stub.Reload(loader_pb2.ReloadRequest(level=level), timeout=RELOAD_SECONDS)  # type: ignore[arg-type]

    def sizes(self) -> dict[str, int]:
        """Most entries of each map."""
        return {each.name: each.max_entries for each in self.node.status().maps}

    # -- dying

    def choose(self, place: str) -> None:
        """Has the loader die at its next passing of a place; "" at none."""
        chosen = self._failpoints / "chosen"
        if not place:
            chosen.unlink(missing_ok=True)
            return
        aside = self._failpoints / "aside"
        aside.write_text(place)
        aside.rename(chosen)

    def passed(self) -> set[str]:
        """Places that any loader process of this node has passed."""
        noted = self._failpoints / "passed"
        return set(noted.read_text().split()) if noted.exists() else set()

    def wait_died(self, place: str) -> None:
        """Returns when the loader has been killed; fails when it has not come to the place that was
        chosen.
        """
        running = self.node.loader.running
        assert running is not None
        try:
            code = running.wait(timeout=SETTLE_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{place} is not passed") from None
        assert code == -signal.SIGKILL, f"ended with {code}:\n{self.node.loader.log.read_text()[-2000:]}"

    def restart(self) -> None:
        """Starts the loader again, without a failpoint, and returns when it serves."""
        self.choose("")
        self.node.loader.kill()
        self.node.loader.start()

    # -- what must hold

    def require_traffic(self) -> None:
        """Fails for every packet that was lost, came twice or passed wrongly."""
        faults = self.traffic.faults()
        assert not faults, f"{len(faults)} packets:\n{show(faults)}"
        assert all(self.traffic.sent.values()), f"flows stand still: {self.traffic.sent}"

    def require_consistent(self, *, full: bool = True) -> None:
        """Fails unless the node agrees with itself, its pods and the services within a while."""
        look = every_problem if full else quick_problems
        settle(lambda: look(self.rig, self.node, self.expected))


def gets_through(namespace: Namespace, address: str, port: int, seconds: float = 1.0) -> bool:
    """Whether a TCP packet gets to an address; a refusal says that too."""

    def connect() -> bool:
        try:
            socket.create_connection((address, port), timeout=seconds).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True

    return namespace.run(connect)


def settle(look: Callable[[], list[str]], seconds: float = SETTLE_SECONDS) -> None:
    """Returns when there is no problem left to see; fails with those that stay."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            problems = look()
        except grpc.RpcError as error:
            problems = [f"{error.code().name}: {error.details()}"]
        if not problems:
            return
        if time.monotonic() > deadline:
            raise AssertionError("after a while still:\n" + "\n".join(problems))
        time.sleep(0.1)


@contextlib.contextmanager
def crash_cluster(directory: Path, flags: Sequence[str] = ()) -> Iterator[CrashCluster]:
    """A cluster of both families with pods and traffic, for as long as the block lasts; ``flags`` are more of
    the loaders'.
    """
    with Namespaces() as namespaces:
        rig = Rig(directory, namespaces, cidrs=DUAL_POOL, flags=flags)
        try:
            made = CrashCluster(rig)
            made.start()
            with made.flowing():
                yield made
        finally:
            rig.close()
