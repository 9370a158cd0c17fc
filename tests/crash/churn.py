"""What goes on at a node while its loader dies: pods come and go, labels, policies and maps change.

Two threads, each with a random generator of its own seed. A call that a dying loader leaves without an answer
is no fault; an answer that it must not give is.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc

from tests.crash.cluster import TCP_FROM_STRANGERS, CrashCluster
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import Pod
from tests.kernel.loader.traffic import reaches
from tests.kernel.netlink.namespaces import Namespace

_NAMESPACES = 8
_MOST_PODS = 6
_ECHO_PORT = 80
_CONNECTION_SIZES = (262_144, 300_000, 200_000)
# What a caller of a loader that dies, or is being started, is told.
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_TRY_AGAIN = 11


class Churn:
    """Changes to the cluster's first node without end; with ``services`` those are killed too.

    ``problems`` are answers that should not have been; ``events`` say what was done when,
    ``done`` how often.
    """

    def __init__(self, cluster: CrashCluster, seed: int, *, services: bool = False) -> None:
        self._cluster = cluster
        self._pods: list[Pod] = []
        self._free: list[Namespace] = [cluster.rig.namespaces.make() for _ in range(_NAMESPACES)]
        self._numbers = 0
        self._stop = threading.Event()
        self._seed = seed
        self._services = services
        self._turns = [threading.Lock(), threading.Lock()]
        self.events: list[tuple[float, str]] = []
        self.problems: list[str] = []
        self.done: dict[str, int] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Changes go on for as long as the block lasts; all pods that it made are deleted at its end."""
        pods = (self._add, self._add, self._delete)
        others = (
            self._relabel_near,
            self._relabel_web,
            self._apply,
            self._apply,
            self._remove_policy,
            self._reload,
            self._resize,
            *([self._kill_service] if self._services else []),
        )
        threads = [
            threading.Thread(target=self._work, args=(turn, actions, f"{self._seed}-{turn}"))
            for turn, actions in enumerate((pods, others))
        ]
        with echo_server(self._cluster.web.namespace, _ECHO_PORT):
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join()
        while self._pods:
            self._remove(self._pods.pop())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is under way in the block."""
        with ExitStack() as stack:
            for turn in self._turns:
                stack.enter_context(turn)
            yield

    def tell(self, what: str) -> None:
        """Notes what happens now."""
        self.events.append((time.monotonic(), what))

    def leaks(self) -> list[str]:
        """Namespaces that no pod has any more, and that still have an interface of ours."""
        return [
            f"namespace {each.name} is nobody's and has an eth0" for each in self._free if _connected(each)
        ]

    def _work(self, turn: int, actions: tuple[Callable[[random.Random], None], ...], seed: str) -> None:
        chance = random.Random(seed)
        while not self._stop.is_set():
            action = chance.choice(actions)
            with self._turns[turn]:
                name = action.__name__[1:]
                self.tell(name)
                try:
                    action(chance)
                    self._count(name)
                except grpc.RpcError as error:
                    if error.code() not in _AWAY:
                        self.problems.append(f"{name}: {error.code().name} {error.details()}")
                except Exception as error:
                    self.problems.append(f"{name}: {type(error).__name__} {error}")
            # Time for the other side to get its turn.
            self._stop.wait(chance.uniform(0.005, 0.05))

    def _count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    # -- pods

    def _add(self, chance: random.Random) -> None:
        """One pod, or several at once."""
        clean = [each for each in self._free if not _connected(each)]
        threads: list[threading.Thread] = []
        for namespace in chance.sample(clean, min(len(clean), chance.choice((1, 1, 3)))):
            if len(self._pods) + len(threads) >= _MOST_PODS:
                break
            self._numbers += 1
            self._free.remove(namespace)
            pod = Pod(self._cluster.node, f"churn-{self._numbers}", namespace, {"app": "client"})
            threads.append(threading.Thread(target=self._add_one, args=(pod, chance.random() < 0.5)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _add_one(self, pod: Pod, again: bool) -> None:
        expected = self._cluster.expected
        expected.unknown.add(pod.container_id)
        code, answer = pod.call("ADD")
        if code and answer.get("code") != _TRY_AGAIN:
            self.problems.append(f"ADD of {pod.name} failed with {answer}")
        # A runtime may try again, or give the pod up.
        if code and again:
            code, answer = pod.call("ADD")
        if code:
            self._count("add failed")
            self._remove(pod)
            return
        self._count("added")
        expected.there.add(pod.container_id)
        expected.unknown.discard(pod.container_id)
        pod.ipv4 = str(answer["ips"][0]["address"]).partition("/")[0]
        self._pods.append(pod)
        if not reaches(pod, self._cluster.web, _ECHO_PORT):
            self.problems.append(f"{pod.name} was added and does not reach web")

    def _delete(self, chance: random.Random) -> None:
        if self._pods:
            self._remove(self._pods.pop(chance.randrange(len(self._pods))))

    def _remove(self, pod: Pod) -> None:
        expected = self._cluster.expected
        expected.there.discard(pod.container_id)
        expected.unknown.add(pod.container_id)
        code, answer = pod.call("DEL")
        if code:
            self.problems.append(f"DEL of {pod.name} failed with {answer}")
        self._count("deleted")
        expected.unknown.discard(pod.container_id)
        self._free.append(pod.namespace)

    # -- everything else

    def _relabel_near(self, chance: random.Random) -> None:
        self._cluster.relabel(self._cluster.near, f"k8s:turn={chance.randrange(3)}")

    def _relabel_web(self, chance: random.Random) -> None:
        self._cluster.relabel(self._cluster.web, f"k8s:turn={chance.randrange(3)}")

    def _apply(self, chance: random.Random) -> None:
        self._cluster.apply(TCP_FROM_STRANGERS.format(port=7000 + chance.randrange(50)))

    def _remove_policy(self, chance: random.Random) -> None:
        self._cluster.remove(TCP_FROM_STRANGERS.format(port=7000))

    def _reload(self, chance: random.Random) -> None:
        if chance.random() < 0.3:
            self._cluster.reload()

    def _resize(self, chance: random.Random) -> None:
        if chance.random() < 0.5:
            self._cluster.resize("ct4", chance.choice(_CONNECTION_SIZES))

    def _kill_service(self, chance: random.Random) -> None:
        name = chance.choice(sorted(self._cluster.rig.services))
        self.tell(f"kill {name}")
        service = self._cluster.rig.services[name]
        service.kill()
        service.start()


def _connected(namespace: Namespace) -> bool:
    """Whether a namespace has an interface beside its loopback."""
    return len(namespace.run(socket.if_nameindex)) > 1
