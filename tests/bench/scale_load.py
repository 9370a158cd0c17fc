"""The load generator: so many callers who each make one unary call after the other.

A process of its own, run as `python -m tests.bench.scale_load` with a :class:`Job` as JSON on its standard
input; it writes an :class:`Outcome`. Of what gRPC for Python offers, futures with callbacks cost the least
of the machine (some 100 µs a call; tasks on grpc.aio and threads take a third more): messages are not
parsed, and a caller's next call starts in the thread that the answer to the one before came in.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import grpc
from fimbria.identity.v1 import identity_pb2
from fimbria.ipam.v1 import ipam_pb2

from tests.bench.figures import percentile

# As those who call the services have it (services/chassis/channel.py).
_DEADLINE_SECONDS = 10.0
_LONGEST_SECONDS = 120.0
_CONFIG: Final = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
_OPTIONS: Final = (("grpc.service_config", _CONFIG), ("grpc.max_receive_message_length", -1))
KNOWN_SETS = 100
_ADDRESSES = "/fimbria.ipam.v1.AddressService"
_HOLDER = "node/node-0"


@dataclass(frozen=True)
class Job:
    """What to call: `kind` is a key of KINDS; the calls are numbered from `first` on.

    It ends after `seconds`, or `count` calls where that is not 0. Batches have `size` owners.
    """

    target: str
    kind: str
    callers: int = 32
    seconds: float = 2.0
    count: int = 0
    first: int = 0
    nodes: int = 8
    size: int = 4000


@dataclass(frozen=True)
class Outcome:
    """What became of it: times in seconds, latencies in milliseconds, failures by status code."""

    calls: int
    seconds: float
    p50: float
    p99: float
    cpu_seconds: float
    failures: dict[str, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds


def run(job: Job) -> Outcome:
    """Runs a load generator; raises RuntimeError when a call has failed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.scale_load"],
        input=json.dumps(asdict(job)), capture_output=True, text=True, timeout=_LONGEST_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
    outcome = Outcome(**json.loads(done.stdout))
    if outcome.failures:
        raise RuntimeError(f"{job.kind}: calls failed: {outcome.failures}, such as {outcome.problem}")
    return outcome


def owner(number: int) -> str:
    """The owner of a number, as long as a container's name and interface."""
    return f"{number:064x}/eth0"


def node(number: int) -> str:
    """The node of a number."""
    return f"node-{number}"


def _allocate(job: Job, number: int) -> Any:
    return ipam_pb2.AllocateRequest(node=node(number % job.nodes), owner=owner(number))


def _release(job: Job, number: int) -> Any:
    return ipam_pb2.ReleaseRequest(node=node(number % job.nodes), owner=owner(number))


def _allocate_batch(job: Job, number: int) -> Any:
    owners = [owner(number * job.size + each) for each in range(job.size)]
    return ipam_pb2.AllocateBatchRequest(node=node(number % job.nodes), owners=owners)


def _release_batch(job: Job, number: int) -> Any:
    held = [ipam_pb2.Holding(owner=owner(number * job.size + each)) for each in range(job.size)]
    return ipam_pb2.ReleaseBatchRequest(node=node(number % job.nodes), holdings=held)


def _resolve(number: int) -> Any:
    labels = [
        f"k8s:app=bench-{number}",
        "k8s:io.kubernetes.pod.namespace=bench",
        "k8s:io.cilium.k8s.policy.serviceaccount=default",
        f"k8s:tier=tier-{number % 3}",
    ]
    return identity_pb2.ResolveRequest(labels=labels, holder=_HOLDER)


_RESOLVE = "/fimbria.identity.v1.IdentityService/Resolve"
KINDS: Final[dict[str, tuple[str, Callable[[Job, int], Any]]]] = {
    "allocate": (f"{_ADDRESSES}/Allocate", _allocate),
    "release": (f"{_ADDRESSES}/Release", _release),
    "allocate batches": (f"{_ADDRESSES}/AllocateBatch", _allocate_batch),
    "release batches": (f"{_ADDRESSES}/ReleaseBatch", _release_batch),
    "known labels": (_RESOLVE, lambda _job, number: _resolve(number % KNOWN_SETS)),
    "new labels": (_RESOLVE, lambda _job, number: _resolve(KNOWN_SETS + number)),
}


class _Generator:
    """The callers of a job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        path, self._request = KINDS[job.kind]
        self._channel = grpc.insecure_channel(job.target, options=_OPTIONS)
        self._call: Any = self._channel.unary_unary(path)
        self._lock = threading.Lock()
        self._next = job.first
        self._last = job.first + job.count if job.count else sys.maxsize
        self._live = job.callers
        self._over = threading.Event()
        self._ends = 0.0
        self._problem = ""
        self.samples: list[float] = []
        self.failures: Counter[str] = Counter()

    def run(self) -> Outcome:
        grpc.channel_ready_future(self._channel).result(_DEADLINE_SECONDS)
        started, cpu = time.perf_counter(), time.process_time()
        self._ends = started + self._job.seconds
        for _ in range(self._job.callers):
            self._go_on()
        if not self._over.wait(_LONGEST_SECONDS):
            raise SystemExit(f"calls are not over after {_LONGEST_SECONDS:g} s")
        elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
        return Outcome(
            len(self.samples), elapsed, percentile(self.samples, 0.5), percentile(self.samples, 0.99), cpu,
            dict(self.failures), self._problem,
        )  # fmt: skip

    def _go_on(self) -> None:
        with self._lock:
            number, self._next = self._next, self._next + 1
            if number >= self._last or time.perf_counter() >= self._ends:
                self._live -= 1
                if self._live == 0:
                    self._over.set()
                return
        message = self._request(self._job, number).SerializeToString()
        begun = time.perf_counter()

        def finish(call: Any) -> None:
            self.samples.append((time.perf_counter() - begun) * 1e3)
            code = call.code()
            if code is not grpc.StatusCode.OK:
                self.failures[code.name] += 1
                self._problem = call.details()
            self._go_on()

        self._call.future(message, timeout=_DEADLINE_SECONDS).add_done_callback(finish)


def main() -> None:
    """Runs the job of the standard input."""
    print(json.dumps(asdict(_Generator(Job(**json.load(sys.stdin))).run())))


if __name__ == "__main__":
    main()
