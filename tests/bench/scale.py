"""IPAM and identity under many callers: unary calls beside an echo of the same stack, batches, replicas."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from cli.lab.postgres import installed
from tests.bench.figures import Figure, median
from tests.bench.scale_load import KNOWN_SETS, Job, Outcome, node, run
from tests.bench.scale_processes import Server, server, sqlite
from tests.postgres import fresh_database

CALLERS = 32
NODES = 8
ROUNDS = 3
_SECONDS = 1.8
_BATCHES, _BATCH = 10, 4000
_REPLICAS = 3
# As many for each replica as the others have for their one.
_REPLICAS_CALLERS = CALLERS * _REPLICAS
# As many as leave none of the replicas waiting for company in its batches.
_SATURATING_CALLERS = _REPLICAS_CALLERS * _REPLICAS
# Room for a node's addresses through the whole run, those on hold after their release included.
POOL = ("--ipam-default-pool-cidr=10.0.0.0/8", "--ipam-default-pool-mask-size=14")


@dataclass(frozen=True)
class Sample:
    """What a round of a job came to, and what it took of the server's processors, in µs a call."""

    outcome: Outcome
    cpu: float


class Samples:
    """The rounds of each job by its name."""

    def __init__(self) -> None:
        self._found: dict[str, list[Sample]] = defaultdict(list)
        self._first: dict[str, int] = defaultdict(int)

    def measure(self, name: str, served: Server, job: Job) -> Outcome:
        """Runs a job and adds what it came to."""
        before = served.cpu_seconds
        outcome = run(job)
        taken = (served.cpu_seconds - before) / outcome.calls * 1e6
        self._found[name].append(Sample(outcome, taken))
        return outcome

    def rate(self, name: str) -> float:
        """Calls a second, at the median."""
        return median([sample.outcome.rate for sample in self._found[name]])

    def p50(self, name: str) -> float:
        """The median latency in milliseconds, at the median of the rounds."""
        return median([sample.outcome.p50 for sample in self._found[name]])

    def p99(self, name: str) -> float:
        """The 99th percentile of the latency in milliseconds, at the median of the rounds."""
        return median([sample.outcome.p99 for sample in self._found[name]])

    def cpu(self, name: str) -> str:
        """What a call took of the server's processors and of the load generator's, in words."""
        ours = median([sample.cpu for sample in self._found[name]])
        theirs = median(
            [sample.outcome.cpu_seconds / sample.outcome.calls * 1e6 for sample in self._found[name]]
        )
        return f"{ours:.0f} µs of the processors a call, and {theirs:.0f} µs in the load generator"


def unary(directory: Path) -> list[Figure]:
    """Calls of 32 callers at a time, one service at work at a time, in turn."""
    found = Samples()
    with ExitStack() as stack:
        echo = stack.enter_context(server("tests.bench.scale_echo", directory, name="echo"))
        bare = stack.enter_context(server("tests.bench.scale_echo", directory, "--bare", name="bare"))
        ipam = stack.enter_context(
            server("services.ipam", directory, sqlite(directory, "ipam"), *POOL, name="ipam")
        )
        identity = stack.enter_context(
            server("services.identity", directory, sqlite(directory, "identity"), name="identity")
        )
        register(ipam.local, NODES)
        run(Job(identity.local, "known labels", count=KNOWN_SETS))
        owners, sets = itertools.count(), 0
        for _ in range(ROUNDS):
            found.measure("echo", echo, _job(echo, "allocate"))
            _allocations(found, ipam, next(owners) * 1_000_000)
            found.measure("bare", bare, _job(bare, "allocate"))
            found.measure("known", identity, _job(identity, "known labels"))
            sets += found.measure("new", identity, _job(identity, "new labels", first=sets)).calls + CALLERS
        batch = run(Job(ipam.local, "allocate batches", callers=1, count=_BATCHES, size=_BATCH, first=10_000))
    return [*_unary_figures(found), *_batch_figures(batch)]


def _job(served: Server, kind: str, first: int = 0) -> Job:
    return Job(served.local, kind, callers=CALLERS, seconds=_SECONDS, first=first, nodes=NODES)


def _allocations(found: Samples, ipam: Server, first: int) -> None:
    """Allocations of many callers, the release of what they got, and a caller who is alone."""
    calls = found.measure("allocate", ipam, _job(ipam, "allocate", first)).calls
    found.measure(
        "release", ipam, Job(ipam.local, "release", callers=CALLERS, seconds=60.0, count=calls, first=first)
    )
    alone = Job(ipam.local, "allocate", callers=1, seconds=1.0, first=first + 500_000)
    found.measure("alone", ipam, alone)


def _unary_figures(found: Samples) -> list[Figure]:
    echo = found.rate("echo")
    figures = [
        Figure(
            f"echo of the servers' stack, {CALLERS} callers",
            echo,
            "calls/s",
            found.rate("bare"),
            "grpc.aio alone",
            note=f"a service that answers and does nothing else: {found.cpu('echo')}; "
            "one process, unix socket, as everything below",
        )
    ]
    for name, what, least in (
        ("allocate", "durable allocations, one each call", 0.7),
        ("release", "durable releases, one each call", None),
        ("known", "known labels resolved", 0.8),
        ("new", "new labels resolved", 0.5),
    ):
        rate = found.rate(name)
        figures.append(
            Figure(
                f"{what}, {CALLERS} callers",
                rate,
                "calls/s",
                echo,
                "echo",
                f">= {least:g} x peer" if least else None,
                rate >= least * echo if least else None,
                f"{found.cpu(name)}; p50 {found.p50(name):.1f} ms, p99 {found.p99(name):.1f} ms",
            )
        )
    for name, value, most in (
        (f"durable allocation, {CALLERS} callers, p99", found.p99("allocate"), 30.0),
        ("durable allocation, one caller, p50", found.p50("alone"), 2.0),
    ):
        figures.append(Figure(name, value, "ms", goal=f"<= {most:g} ms", met=value <= most))
    return figures


def _batch_figures(batch: Outcome) -> list[Figure]:
    rate = batch.rate * _BATCH
    return [
        Figure(
            f"addresses allocated by calls for {_BATCH:,} owners each",
            rate,
            "/s",
            goal=">= 20,000 /s",
            met=rate >= 20_000,
            note=f"{_BATCHES} calls one after the other, each one transaction",
        )
    ]


def replicas(_directory: Path) -> list[Figure]:
    """One replica over PostgreSQL, and three of them, with the same callers."""
    if not installed():
        raise RuntimeError("PostgreSQL is not installed: no figures of replicas")
    found: dict[tuple[int, int], Samples] = defaultdict(Samples)
    with fresh_database("ipam") as url, _replicas(_directory, url) as served:
        targets = [f"127.0.0.1:{each.port}" for each in served]
        register(f"ipv4:{targets[0]}", NODES)
        first = 0
        for callers in (_REPLICAS_CALLERS, _SATURATING_CALLERS):
            for _ in range(ROUNDS):
                for count in (1, _REPLICAS):
                    job = Job(
                        f"ipv4:{','.join(targets[:count])}",
                        "allocate",
                        callers=callers,
                        seconds=_SECONDS,
                        first=first,
                    )
                    measured = found[callers, count].measure("allocate", served[0], job)
                    first += measured.calls + callers
    return [
        _beside_one(callers, found[callers, _REPLICAS], found[callers, 1], goal)
        for callers, goal in ((_REPLICAS_CALLERS, None), (_SATURATING_CALLERS, "> peer"))
    ]


def _beside_one(callers: int, several: Samples, one: Samples, goal: str | None) -> Figure:
    rate, alone = several.rate("allocate"), one.rate("allocate")
    return Figure(
        f"durable allocations, {_REPLICAS} replicas over PostgreSQL, {callers} callers",
        rate,
        "calls/s",
        alone,
        "one replica",
        goal,
        rate > alone if goal else None,
        f"the same callers over TCP, PostgreSQL on the same cores; p99 {several.p99('allocate'):.1f} ms, "
        f"{one.p99('allocate'):.1f} ms with one replica",
    )


@contextmanager
def _replicas(directory: Path, url: str) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                server("services.ipam", directory, f"--database-url={url}", *POOL, name=f"ipam-{number}")
            )
            for number in range(_REPLICAS)
        ]


def register(target: str, nodes: int) -> None:
    """Makes nodes 0 to `nodes` - 1."""
    with grpc.insecure_channel(target) as channel:
        stub = ipam_pb2_grpc.NodeServiceStub(channel)
        for number in range(nodes):
            ipv4 = f"172.16.{number // 250}.{number % 250 + 1}"
            stub.RegisterNode(
                ipam_pb2.RegisterNodeRequest(name=node(number), ipv4=ipv4), timeout=30, wait_for_ready=True
            )
