"""Each process in turn is stopped, killed, restarted, frozen, made slow, or kept from its database, while
pods come and go. What must always hold (docs/crash-safety.md) is checked by packets and by what all list.
"""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from fimbria.loader.v1 import loader_pb2, loader_pb2_grpc
from fimbria.policy.v1 import policy_pb2, policy_pb2_grpc

from cli.lab.lab import Lab
from tests.cluster.conftest import CLIENT, STRANGER, WEB
from tests.cluster.lab_rig import LabRig
from tests.cluster.test_restart import poll
from tests.crash.cluster import TCP_FROM_STRANGERS, gets_through, settle
from tests.crash.flows import Flow, FlowKind, Traffic, show, traffic
from tests.crash.invariants import Expected, quick_problems, service_problems
from tests.kernel.loader.rig import ONLY_CLIENT, Pod
from tests.kernel.netlink.namespaces import Namespace, Namespaces

pytestmark = pytest.mark.cluster

SERVICES: Final = ("ipam", "identity", "policy")
NODES: Final = ("node-1", "node-2")
AWAY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
TRY_AGAIN: Final = 11
DEADLINE: Final = 2.0
# A port where nobody listens: a refusal says that the packet got there.
PORT: Final = 80

_numbers = itertools.count(1)


# -- faults: each a context in which the named process is not itself


@contextmanager
def _gone(lab: Lab, name: str, number: signal.Signals) -> Iterator[None]:
    victim = lab.process(name)
    os.kill(victim.pid, number)
    poll(lambda: not victim.alive)
    try:
        yield
    finally:
        lab.up()


def stopped(lab: Lab, name: str) -> AbstractContextManager[None]:
    """Told to end, and away."""
    return _gone(lab, name, signal.SIGTERM)


def killed(lab: Lab, name: str) -> AbstractContextManager[None]:
    """Killed, and away."""
    return _gone(lab, name, signal.SIGKILL)


@contextmanager
def restarted(lab: Lab, name: str) -> Iterator[None]:
    """On its way up again while things happen."""
    victim = lab.process(name)
    os.kill(victim.pid, signal.SIGTERM)
    poll(lambda: not victim.alive)
    starter = threading.Thread(target=lab.up)
    starter.start()
    try:
        yield
    finally:
        starter.join()
        lab.up()


@contextmanager
def frozen(lab: Lab, name: str) -> Iterator[None]:
    """There, and silent."""
    victim = lab.process(name)
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(victim.pid, signal.SIGCONT)


@contextmanager
def slow(lab: Lab, name: str) -> Iterator[None]:
    """Runs an eighth of the time."""
    victim, end = lab.process(name), threading.Event()

    def work() -> None:
        while not end.is_set():
            os.kill(victim.pid, signal.SIGSTOP)
            end.wait(0.07)
            os.kill(victim.pid, signal.SIGCONT)
            end.wait(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextmanager
def locked(lab: Lab, name: str) -> Iterator[None]:
    """Kept from writing by somebody else's transaction."""
    connection = sqlite3.connect(lab.paths.data / f"{name}.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


Fault = Callable[[Lab, str], AbstractContextManager[None]]
FAULTS: Final[tuple[Fault, ...]] = (stopped, killed, restarted, frozen, slow)
CASES: Final = [(fault, name) for name in (*SERVICES, *NODES) for fault in FAULTS] + [
    (locked, name) for name in SERVICES
]


class Chaos:
    """The shop, with traffic, and what was accepted of it."""

    def __init__(self, lab: Lab, namespaces: Namespaces) -> None:
        self.lab = lab
        self.rig = LabRig(lab, namespaces)
        self.expected = Expected(there={row["container_id"] for row in lab.pods()})
        self.rows = {f"{row['namespace']}/{row['name']}": row for row in lab.pods()}
        self.stranger = Namespace(Path(self.rows[STRANGER]["netns"]).name)
        self.web = str(self.rows[WEB]["ips"][0])
        self.identities: dict[tuple[str, ...], int] = {}
        self.open_port = 0
        self._owed: list[str] = []
        self.traffic: Traffic

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Traffic as long as the block lasts."""
        target = self.rows[WEB]["netns"]

        def flow(name: str, kind: FlowKind, source: str, port: int) -> Flow:
            path, passes = self.rows[source]["netns"], source == CLIENT
            return Flow(name, kind, path, target, self.web, port, 0.005, passes)

        flows = [
            flow("established", "udp", CLIENT, 9001),
            flow("new", "fresh", CLIENT, 9002),
            flow("connection", "tcp", CLIENT, 9003),
            flow("denied", "fresh", STRANGER, 9004),
        ]
        with traffic(flows) as self.traffic:
            yield

    # -- pods

    def pod(self, node: str, app: str) -> Pod:
        """A pod that is not added yet."""
        (found,) = [each for each in self.rig.nodes if each.name == node]
        pod = self.rig.pod(found, f"chaos-{next(_numbers)}", app=app)
        self.expected.unknown.add(pod.container_id)
        return pod

    def add(self, pod: Pod) -> int:
        """ADD; its code: 0, or 11 for what is to be tried again."""
        code, answer = pod.call("ADD")
        if code == 0:
            pod.ipv4 = str(answer["ips"][0]["address"]).partition("/")[0]
            self.expected.there.add(pod.container_id)
            return 0
        assert answer["code"] == TRY_AGAIN, answer
        return TRY_AGAIN

    def cannot_add(self, pod: Pod) -> list[str]:
        """Adds a pod; what is in the way of that."""
        return ["it cannot be added yet"] if self.add(pod) else []

    def delete(self, pod: Pod) -> None:
        """DEL, which always succeeds."""
        self.expected.there.discard(pod.container_id)
        code, answer = pod.call("DEL")
        assert code == 0, answer
        self.expected.unknown.discard(pod.container_id)

    def passes(self, source: Namespace, port: int, seconds: float = 1.0) -> bool:
        """Whether a TCP packet gets from a namespace to web."""
        return gets_through(source, self.web, port, seconds)

    # -- writes to the services, and whether they were accepted

    def apply(self) -> bool:
        """Opens another port to strangers, and closes the one before."""
        port = 7000 + next(_numbers)
        with grpc.insecure_channel(self.rig.target("policy")) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            manifest = TCP_FROM_STRANGERS.format(port=port)
            request = policy_pb2.ApplyPoliciesRequest(manifests=manifest)
            if not _accepted(lambda: stub.ApplyPolicies(request, timeout=DEADLINE)):
                return False
        self.open_port = port
        return True

    def resolve(self) -> bool:
        """Has new labels get an identity."""
        labels = (f"k8s:chaos={next(_numbers)}",)
        with grpc.insecure_channel(self.rig.target("identity")) as channel:
            stub = identity_pb2_grpc.IdentityServiceStub(channel)
            request = identity_pb2.ResolveRequest(labels=labels)
            answers: list[identity_pb2.Identity] = []
            if not _accepted(lambda: answers.append(stub.Resolve(request, timeout=DEADLINE))):
                return False
        self.identities[labels] = answers[0].id
        return True

    def allocate(self) -> bool:
        """Takes an address, and gives it back at once."""
        with grpc.insecure_channel(self.rig.target("ipam")) as channel:
            stub = ipam_pb2_grpc.AddressServiceStub(channel)
            owner = f"chaos-{next(_numbers)}/eth0"
            request = ipam_pb2.AllocateRequest(node="node-1", owner=owner)
            taken = _accepted(lambda: stub.Allocate(request, timeout=DEADLINE))
        self._owed.append(owner)
        return taken

    def look(self, node: str) -> bool:
        """Asks a loader for its endpoints."""
        (found,) = [each for each in self.rig.nodes if each.name == node]
        with grpc.insecure_channel(found.target) as channel:
            stub = loader_pb2_grpc.EndpointServiceStub(channel)
            request = loader_pb2.ListEndpointsRequest()
            return _accepted(lambda: stub.ListEndpoints(request, timeout=DEADLINE))

    def release(self) -> None:
        """Gives back what :meth:`allocate` took, or may have taken."""
        with grpc.insecure_channel(self.rig.target("ipam")) as channel:
            stub = ipam_pb2_grpc.AddressServiceStub(channel)
            while self._owed:
                request = ipam_pb2.ReleaseRequest(node="node-1", owner=self._owed[-1])
                stub.Release(request, timeout=10, wait_for_ready=True)
                self._owed.pop()

    # -- what must hold when the fault is over

    def require_all_well(self) -> None:
        """Everything converges within a while, every accepted write is there, and no packet went astray."""
        settle(self._problems)
        for labels, number in self.identities.items():
            with grpc.insecure_channel(self.rig.target("identity")) as channel:
                stub = identity_pb2_grpc.IdentityServiceStub(channel)
                assert stub.Resolve(identity_pb2.ResolveRequest(labels=labels), timeout=10).id == number
        stranger = self.stranger
        assert self.passes(stranger, self.open_port), f"port {self.open_port} is not open"
        assert not self.passes(stranger, self.open_port - 1, seconds=0.2)
        faults = self.traffic.faults()
        assert not faults, f"{len(faults)} packets:\n{show(faults)}"

    def _problems(self) -> list[str]:
        problems = service_problems(self.rig)
        for node in self.rig.nodes:
            problems += quick_problems(self.rig, node, self.expected)
        with grpc.insecure_channel(self.rig.target("policy")) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            revision = stub.ListPolicies(policy_pb2.ListPoliciesRequest(), timeout=10).revision
            found = stub.ListEnforcement(policy_pb2.ListEnforcementRequest(), timeout=10)
        problems += [
            f"{each.node} enforces policy revision {each.acknowledged.policy}, not {revision}"
            for each in found.nodes
            if not each.subscribed or each.acknowledged.policy < revision
        ]
        return problems


def _accepted(call: Callable[[], object]) -> bool:
    """Whether a call was answered; one that was not must say so clearly, and in time."""
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() in AWAY, f"{error.code().name}: {error.details()}"
        return False
    return True


@pytest.fixture(scope="module")
def chaos(shop: Lab) -> Iterator[Chaos]:
    with Namespaces() as namespaces:
        made = Chaos(shop, namespaces)
        made.rig.apply(ONLY_CLIENT)
        assert made.apply()
        with made.flowing():
            yield made


@pytest.mark.parametrize(("fault", "name"), CASES, ids=[f"{name}-{fault.__name__}" for fault, name in CASES])
def test_what_must_hold_holds(chaos: Chaos, fault: Fault, name: str) -> None:
    node = name if name in NODES else "node-1"
    leaving, coming, barred = (
        chaos.pod(node, "client"),
        chaos.pod(node, "client"),
        chaos.pod(node, "stranger"),
    )
    assert chaos.add(leaving) == 0
    with fault(chaos.lab, name):
        writes = {
            "policy": chaos.apply(),
            "identity": chaos.resolve(),
            "ipam": chaos.allocate(),
            **{each: chaos.look(each) for each in NODES},
        }
        # Whoever is not concerned goes on as if nothing were.
        concerned = {name, "policy"} if name == "identity" else {name}
        assert all(accepted for service, accepted in writes.items() if service not in concerned), writes
        with ThreadPoolExecutor(max_workers=3) as pool:
            codes = list(pool.map(chaos.add, (coming, barred)))
            # Whatever became of it: without a policy that lets it nothing of it passes.
            assert not chaos.passes(barred.namespace, PORT, seconds=0.2)
            refused = [pod for pod, code in zip((coming, barred), codes, strict=True) if code]
            list(pool.map(chaos.delete, (leaving, *refused)))
    for pod in (coming, barred):
        if pod.container_id not in chaos.expected.there:
            settle(partial(chaos.cannot_add, pod))
    # A moment after ADD: other nodes have to hear of it.
    settle(lambda: [] if chaos.passes(coming.namespace, PORT) else ["the new pod does not reach web"])
    assert not chaos.passes(barred.namespace, PORT, seconds=0.2)
    if not writes["policy"]:
        # What was not answered may have been done or not.
        settle(lambda: [] if chaos.apply() else ["the policy is not accepted"])
    chaos.release()
    chaos.require_all_well()
    chaos.delete(coming)
    chaos.delete(barred)
