"""A small cluster for the loader's tests: the three services and nodes as processes, pods through the real
plugin.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from fimbria.loader.v1 import loader_pb2, loader_pb2_grpc
from fimbria.policy.v1 import policy_pb2, policy_pb2_grpc

from services.loader.bpf.pins import remove_pins
from tests.kernel.netlink.namespaces import Namespace, Namespaces
from tests.patience import patient
from tests.service.processes import POLL_SECONDS, START_SECONDS

REPOSITORY = Path(__file__).resolve().parents[3]
PLUGIN = REPOSITORY / "build" / "fimbria-cni"
SERVICES = ("ipam", "identity", "policy")
IPV4_POOL = "10.244.0.0/16"
DUAL_POOL = "10.244.0.0/16,fd00:10:244::/96"
BPFFS = Path("/sys/fs/bpf/fimbria")

ONLY_CLIENT = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
"""


@dataclass
class Process:
    """One process of the rig; ``start`` may be called again after ``kill``."""

    name: str
    arguments: list[str]
    ready: Path
    log: Path
    running: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    """More of its environment, for the next start."""

    def start(self, *, wait: bool = True) -> None:
        self.ready.unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FIMBRIA_")}
        with self.log.open("ab") as output:
            self.running = subprocess.Popen(
                self.arguments, stdout=output, stderr=output, env=environment | self.environment
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        assert self.running is not None
        deadline = time.monotonic() + START_SECONDS
        while not self.ready.exists():
            if self.running.poll() is not None:
                raise AssertionError(
                    f"{self.name} ended with {self.running.returncode}:\n{self.log.read_text()}"
                )
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} was not ready in time:\n{self.log.read_text()}")
            time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self.running is not None:
            self.running.kill()
            self.running.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        assert self.running is not None
        self.running.send_signal(signal.SIGTERM)
        return self.running.wait(timeout=START_SECONDS)


@dataclass
class Node:
    """A node: its namespace and its loader."""

    name: str
    ipv4: str
    namespace: Namespace
    loader: Process
    directory: Path
    ipv6: str = ""

    @property
    def socket(self) -> Path:
        return self.directory / "cni.sock"

    @property
    def target(self) -> str:
        return f"unix:{self.directory / 'loader.sock'}"

    def endpoints(self) -> list[loader_pb2.Endpoint]:
        with grpc.insecure_channel(self.target) as channel:
            stub = loader_pb2_grpc.EndpointServiceStub(channel)
            return list(
                stub.ListEndpoints(
                    loader_pb2.ListEndpointsRequest(), wait_for_ready=True, timeout=10
                ).endpoints
            )

    def endpoint(self, pod: str) -> loader_pb2.Endpoint:
        """The endpoint of the pod of that name."""
        (found,) = [each for each in self.endpoints() if each.pod_name == pod]
        return found

    def update_labels(self, number: int, labels: list[str]) -> loader_pb2.Endpoint:
        with grpc.insecure_channel(self.target) as channel:
            stub = loader_pb2_grpc.EndpointServiceStub(channel)
            return stub.UpdateEndpointLabels(
                loader_pb2.UpdateEndpointLabelsRequest(id=number, labels=labels), timeout=10
            )

    def status(self) -> loader_pb2.DatapathStatus:
        with grpc.insecure_channel(self.target) as channel:
            stub = loader_pb2_grpc.DatapathServiceStub(channel)
            return stub.GetStatus(loader_pb2.GetStatusRequest(), wait_for_ready=True, timeout=patient(10))

    def policy(self, number: int) -> loader_pb2.ListPolicyEntriesResponse:
        with grpc.insecure_channel(self.target) as channel:
            stub = loader_pb2_grpc.DatapathServiceStub(channel)
            return stub.ListPolicyEntries(
                loader_pb2.ListPolicyEntriesRequest(endpoint_id=number), timeout=patient(10)
            )

    def ipcache(self) -> dict[str, loader_pb2.KernelIpCacheEntry]:
        with grpc.insecure_channel(self.target) as channel:
            stub = loader_pb2_grpc.DatapathServiceStub(channel)
            answer = stub.ListIpCache(loader_pb2.ListIpCacheRequest(page_size=1000), timeout=patient(10))
            return {entry.prefix: entry for entry in answer.entries}

    def wait_applied(self, policy_revision: int) -> None:
        with grpc.insecure_channel(self.target) as channel:
            stub = loader_pb2_grpc.DatapathServiceStub(channel)
            request = loader_pb2.WaitAppliedRequest(policy_revision=policy_revision)
            stub.WaitApplied(request, wait_for_ready=True, timeout=patient(20))

    def flows(self) -> list[loader_pb2.Flow]:
        with grpc.insecure_channel(self.target) as channel:
            stub = loader_pb2_grpc.ObserverServiceStub(channel)
            return [
                item.flow
                for item in stub.GetFlows(loader_pb2.GetFlowsRequest(), timeout=patient(10))
                if item.HasField("flow")
            ]

    def links(self) -> set[str]:
        """Names of the endpoints' devices on the node."""
        found = json.loads(self.namespace.command("ip", "-j", "link"))
        return {link["ifname"] for link in found if link["ifname"].startswith("lxc")}


@dataclass
class Pod:
    """A pod as a runtime knows it."""

    node: Node
    name: str
    namespace: Namespace
    labels: dict[str, str]
    ipv4: str = ""
    ipv6: str = ""
    ports: list[dict[str, Any]] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)

    def _annotations(self) -> list[dict[str, str]]:
        return [{"key": key, "value": value} for key, value in self.annotations.items()]

    @property
    def container_id(self) -> str:
        return f"container-{self.name}"

    def call(self, command: str, *, netns: str | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
        """Runs the plugin; its exit code and what it printed."""
        pairs = [{"key": key, "value": value} for key, value in self.labels.items()]
        config = {
            "cniVersion": "1.0.0",
            "name": "fimbria",
            "type": "fimbria-cni",
            "socket": str(self.node.socket),
            "queue": str(self.node.directory / "deletes"),
            "args": {"cni": {"labels": pairs, "ports": self.ports, "annotations": self._annotations()}},
            **more,
        }
        done = subprocess.run(
            [PLUGIN],
            input=json.dumps(config).encode(),
            capture_output=True,
            timeout=patient(60),
            check=False,
            env={
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": self.container_id,
                "CNI_NETNS": self.namespace.path if netns is None else netns,
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={self.name}",
                "CNI_PATH": "/opt/cni/bin",
            },
        )
        return done.returncode, json.loads(done.stdout or b"{}")

    def add(self, **more: Any) -> dict[str, Any]:
        code, answer = self.call("ADD", **more)
        assert code == 0, answer
        for each in answer["ips"]:
            address = each["address"].partition("/")[0]
            if ":" in address:
                self.ipv6 = address
            else:
                self.ipv4 = address
        return answer

    def delete(self) -> None:
        code, answer = self.call("DEL")
        assert code == 0, answer


class Rig:
    """The cluster. Everything that it makes is gone after :meth:`close`.

    ``cidrs`` is the pool, or empty for none; with an IPv6 one, or ``ipv6``, the nodes have IPv6 on the
    underlay too. ``flags`` are more of the loaders', ``node_flags`` of one of them by number,
    ``service_flags`` of a service by name.
    """

    def __init__(
        self,
        directory: Path,
        namespaces: Namespaces,
        nodes: int = 2,
        cidrs: str = IPV4_POOL,
        flags: Sequence[str] = (),
        node_flags: Callable[[int], Sequence[str]] = lambda number: (),
        service_flags: Mapping[str, Sequence[str]] = {},
        ipv6: bool = False,
    ) -> None:
        self.directory = directory
        self._cidrs = cidrs
        self._flags = list(flags)
        self._node_flags = node_flags
        self._service_flags = service_flags
        self._ipv6 = ipv6 or ":" in cidrs
        self.namespaces = namespaces
        self.pin_root = BPFFS / f"test-{os.getpid()}-{directory.name}"
        self.services = {name: self._service(name) for name in SERVICES}
        self.nodes: list[Node] = []
        self._underlay = namespaces.make()
        self._underlay.command("ip", "link", "add", "underlay", "type", "bridge")
        self._underlay.command("ip", "link", "set", "underlay", "up")
        for number in range(1, nodes + 1):
            self.nodes.append(self._node(number))

    def start(self) -> None:
        for service in self.services.values():
            service.start(wait=False)
        for service in self.services.values():
            service.wait_ready()
        for node in self.nodes:
            node.loader.start(wait=False)
        for node in self.nodes:
            node.loader.wait_ready()

    def close(self) -> None:
        for process in [*(node.loader for node in self.nodes), *self.services.values()]:
            process.kill()
        for node in self.nodes:
            remove_pins(str(self.pin_root / node.name))
        shutil.rmtree(self.pin_root, ignore_errors=True)

    def target(self, service: str) -> str:
        return f"unix:{self.directory / service}.sock"

    def pins(self, node: Node) -> Path:
        """Where a node's kernel objects are pinned."""
        return self.pin_root / node.name

    def pod(self, node: Node, name: str, **labels: str) -> Pod:
        return Pod(node, name, self.namespaces.make(), labels)

    def create_pool(self, name: str, cidrs: list[str], **more: Any) -> None:
        with grpc.insecure_channel(self.target("ipam")) as channel:
            stub = ipam_pb2_grpc.PoolServiceStub(channel)
            request = ipam_pb2.CreatePoolRequest(name=name, cidrs=cidrs, **more)
            stub.CreatePool(request, wait_for_ready=True, timeout=patient(10))

    def draining(self, name: str) -> dict[str, int]:
        """How many addresses of each draining CIDR of a pool are held or on hold."""
        with grpc.insecure_channel(self.target("ipam")) as channel:
            stub = ipam_pb2_grpc.PoolServiceStub(channel)
            request = ipam_pb2.GetPoolRequest(name=name)
            pool = stub.GetPool(request, wait_for_ready=True, timeout=patient(10))
            return {each.cidr: each.addresses for each in pool.draining}

    def update_pool(self, name: str, cidrs: list[str]) -> None:
        with grpc.insecure_channel(self.target("ipam")) as channel:
            stub = ipam_pb2_grpc.PoolServiceStub(channel)
            request = ipam_pb2.UpdatePoolRequest(name=name, cidrs=cidrs)
            stub.UpdatePool(request, wait_for_ready=True, timeout=patient(10))

    def four_pods(self) -> dict[str, Pod]:
        """web and near on the first node, client and stranger on the second, added."""
        first, second = self.nodes
        made = {
            "web": self.pod(first, "web", app="web"),
            "near": self.pod(first, "near", app="client"),
            "client": self.pod(second, "client", app="client"),
            "stranger": self.pod(second, "stranger", app="stranger"),
        }
        for pod in made.values():
            pod.add()
        return made

    def owners(self) -> set[str]:
        """Owners of addresses, as IPAM has them."""
        with grpc.insecure_channel(self.target("ipam")) as channel:
            stub = ipam_pb2_grpc.AddressServiceStub(channel)
            answer = stub.ListAddresses(
                ipam_pb2.ListAddressesRequest(), wait_for_ready=True, timeout=patient(10)
            )
            return {address.owner for address in answer.addresses}

    def published(self) -> dict[str, identity_pb2.IpCacheEntry]:
        """The cluster's ipcache, by prefix."""
        with grpc.insecure_channel(self.target("identity")) as channel:
            stub = identity_pb2_grpc.IpCacheServiceStub(channel)
            request = identity_pb2.ListIpCacheEntriesRequest()
            answer = stub.ListIpCacheEntries(request, wait_for_ready=True, timeout=patient(10))
            return {entry.prefix: entry for entry in answer.entries}

    def apply(self, manifest: str) -> int:
        """Applies a policy and waits until every node enforces it; the revision."""
        with grpc.insecure_channel(self.target("policy")) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            applied = stub.ApplyPolicies(
                policy_pb2.ApplyPoliciesRequest(manifests=manifest), timeout=patient(10)
            )
            stub.WaitEnforced(policy_pb2.WaitEnforcedRequest(revision=applied.revision), timeout=patient(30))
            return int(applied.revision)

    def remove_policy(self, manifest: str) -> None:
        with grpc.insecure_channel(self.target("policy")) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            deleted = stub.DeletePolicies(
                policy_pb2.DeletePoliciesRequest(manifests=manifest), timeout=patient(10)
            )
            stub.WaitEnforced(policy_pb2.WaitEnforcedRequest(revision=deleted.revision), timeout=patient(30))

    def underlay(self, node: Node, device: str) -> None:
        """Gives a node a network card with its addresses, in place of one that it has lost."""
        self._connect(node.namespace, node.name, device, node.ipv4, node.ipv6)

    def _connect(self, namespace: Namespace, name: str, device: str, ipv4: str, ipv6: str) -> None:
        self._underlay.command(
            "ip", "link", "add", name, "type", "veth", "peer", "name", device, "netns", namespace.name
        )
        self._underlay.command("ip", "link", "set", name, "master", "underlay", "up")
        commands = [f"link set {device} up", f"address add {ipv4}/16 dev {device}"]
        if ipv6:
            commands.append(f"address add {ipv6}/64 dev {device} nodad")
        for command in commands:
            namespace.command("ip", *command.split())

    def _service(self, name: str) -> Process:
        ready = self.directory / f"{name}.ready"
        flags = [
            f"--listen=unix:{self.directory / name}.sock",
            f"--database-url=sqlite:///{self.directory / name}.db",
            f"--ready-file={ready}",
        ]
        flags += self._service_flags.get(name, ())
        if name == "ipam" and self._cidrs:
            flags.append(f"--ipam-default-pool-cidr={self._cidrs}")
        if name == "policy":
            flags.append(f"--identity-target={self.target('identity')}")
        command = [sys.executable, "-m", f"services.{name}", *flags]
        return Process(name, command, ready, self.directory / f"{name}.log")

    def _node(self, number: int) -> Node:
        name, ipv4 = f"node-{number}", f"172.31.1.{number}"
        namespace = self.namespaces.make()
        namespace.command("ip", "link", "set", "lo", "up")
        ipv6 = f"2001:db8::{number}" if self._ipv6 else ""
        self._connect(namespace, name, "eth0", ipv4, ipv6)
        directory = self.directory / name
        directory.mkdir()
        ready = directory / "ready"
        flags = [
            f"--listen=unix:{directory}/loader.sock",
            f"--node-name={name}",
            f"--node-ipv4={ipv4}",
            *([f"--node-ipv6={ipv6}"] if ipv6 else []),
            *self._flags,
            *self._node_flags(number),
            *(f"--{service}-target={self.target(service)}" for service in SERVICES),
            f"--state-dir={directory}/state",
            f"--pin-dir={self.pin_root / name}",
            f"--source-dir={REPOSITORY / 'bpf'}",
            f"--cache-dir={REPOSITORY / 'build' / 'bpf-cache'}",
            f"--cni-socket={directory}/cni.sock",
            f"--cni-queue={directory}/deletes",
            f"--trace-file={directory}/trace.jsonl",
            f"--ready-file={ready}",
        ]
        inside = ["nsenter", f"--net={namespace.path}", "--", sys.executable, "-m", "services.loader", *flags]
        process = Process(name, inside, ready, directory / "log")
        return Node(name, ipv4, namespace, process, directory, ipv6)


@contextmanager
def running_rig(directory: Path, **options: Any) -> Iterator[Rig]:
    """A rig that runs, until the end of the block; ``options`` are those of :class:`Rig`."""
    with Namespaces() as namespaces:
        made = Rig(directory, namespaces, **options)
        try:
            made.start()
            yield made
        finally:
            made.close()
