"""What a watch costs: a new watcher's 100,000 ipcache entries, and a change's way to 50 watchers.

Run as `python -m tests.bench.scale_watch` it is the watchers' process, with a :class:`Watch` as JSON on its
standard input: it tells on its standard output when all streams are open, and in the end what came when.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc

from tests.bench.figures import Figure, median, percentile
from tests.bench.scale_processes import Server, server, sqlite

ENTRIES = 100_000
_NODES = 100
_IDENTITIES = 500
WATCHERS = 50
_EVENTS = 200
_PAUSE_SECONDS = 0.02
_SNAPSHOTS = 3
_WAIT_SECONDS = 60.0
_PATH = "/fimbria.identity.v1.IpCacheService/WatchIpCache"
# A connection for each: that is how many loaders have it.
_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))


@dataclass(frozen=True)
class Watch:
    """`watchers` streams from `revision` on, each until it has `events` events; 0: until its snapshot is
    complete.
    """

    target: str
    watchers: int
    revision: int
    events: int


def watches(directory: Path) -> list[Figure]:
    """Every figure of watches."""
    with server("services.identity", directory, sqlite(directory, "watched"), name="watched") as served:
        with grpc.insecure_channel(served.local) as channel:
            stub = identity_pb2_grpc.IpCacheServiceStub(channel)
            _publish_all(stub, _identities(channel))
            return [*_snapshot(served), *_delivery(served, stub)]


def _identities(channel: grpc.Channel) -> Sequence[int]:
    stub = identity_pb2_grpc.IdentityServiceStub(channel)
    requests = [
        identity_pb2.ResolveRequest(labels=[f"k8s:app=a{number}"], holder="policy")
        for number in range(_IDENTITIES)
    ]
    calls = [stub.Resolve.future(request, timeout=30) for request in requests]
    return [call.result().id for call in calls]


def _publish_all(stub: Any, identities: Sequence[int]) -> None:
    """As many nodes as publish their own."""
    first, each = ipaddress.IPv4Address("10.0.0.0"), ENTRIES // _NODES
    for number in range(_NODES):
        entries = [
            identity_pb2.IpCacheEntry(
                prefix=f"{first + place}/32", identity=identities[place % _IDENTITIES],
                tunnel_endpoint=f"172.16.0.{number + 1}", owner=f"bench/pod-{place}",
            )
            for place in range(number * each, (number + 1) * each)
        ]  # fmt: skip
        stub.Publish(identity_pb2.PublishRequest(node=f"node-{number}", entries=entries), timeout=60)


def _snapshot(served: Server) -> list[Figure]:
    samples, before = [], served.resident_mb
    for _ in range(_SNAPSHOTS):
        arrived = _watch(Watch(served.local, 1, 0, 0))
        if arrived["events"] < ENTRIES:
            raise RuntimeError(f"a watcher got {arrived['events']} entries, expected {ENTRIES}")
        samples.append(arrived["seconds"])
    value = median(samples)
    return [
        Figure(
            f"{ENTRIES:,} ipcache entries to a new watcher",
            value,
            "s",
            goal="<= 2 s",
            met=value <= 2,
            note=f"parsed and counted, until the snapshot is complete; of {_NODES} nodes and {_IDENTITIES} "
            "identities. What a loader then does with them is the section on the loader's. The service's "
            f"resident memory went from {before:.0f} to {served.resident_mb:.0f} MB",
        )
    ]


def _delivery(served: Server, stub: Any) -> list[Figure]:
    """A change at a time; each watcher's time from the call of Publish on, the commit included."""
    revision = stub.Publish(_one(0), timeout=10).revision
    process = _start(Watch(served.local, WATCHERS, revision, _EVENTS))
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "open":
            raise RuntimeError("the watchers' process does not watch")
        called = []
        for number in range(1, _EVENTS + 1):
            called.append(time.monotonic())
            stub.Publish(_one(number), timeout=10)
            time.sleep(max(0.0, called[-1] + _PAUSE_SECONDS - time.monotonic()))
        text, _ = process.communicate(timeout=_WAIT_SECONDS)
    finally:
        process.kill()
        process.wait()
    streams = json.loads(text)["times"]
    samples = [
        (arrived - begun) * 1e3 for stream in streams for begun, arrived in zip(called, stream, strict=True)
    ]
    figures = []
    for label, q, most in (("p50", 0.5, None), ("p99", 0.99, 20.0)):
        value = percentile(samples, q)
        figures.append(
            Figure(
                f"a change of the ipcache at {WATCHERS} watchers, {label}",
                value,
                "ms",
                goal=f"<= {most:g} ms" if most else None,
                met=value <= most if most else None,
                note="from the publisher's call, so the commit is in it, to the arrival of the event in the "
                f"watchers' process; {_EVENTS} changes, 50 a second, {len(samples):,} arrivals"
                if label == "p99"
                else "",
            )
        )
    return figures


def _one(number: int) -> identity_pb2.PublishRequest:
    entry = identity_pb2.IpCacheEntry(
        prefix="192.168.0.1/32", identity=1 + number % 2, owner=f"bench/{number}"
    )
    return identity_pb2.PublishRequest(node="node-0", entries=[entry])


def _start(watch: Watch) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.scale_watch"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(watch)) + "\n")
    process.stdin.flush()
    return process


def _watch(watch: Watch) -> dict[str, Any]:
    with closing(_Process(_start(watch))) as running:
        text, _ = running.process.communicate(timeout=_WAIT_SECONDS)
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


@dataclass
class _Process:
    process: subprocess.Popen[str]

    def close(self) -> None:
        """Ends it, if it has not ended."""
        self.process.kill()
        self.process.wait()


class _Stream:
    """One watcher: a thread, a connection, and when its messages came."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._channel = grpc.insecure_channel(watch.target, options=_OPTIONS)
        self._open = threading.Event()
        self.arrived: list[tuple[float, int]] = []
        self.events = 0
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        grpc.channel_ready_future(self._channel).result(_WAIT_SECONDS)
        self._thread.start()

    def wait_open(self) -> None:
        if not self._open.wait(_WAIT_SECONDS):
            raise SystemExit("a watch does not open")

    def join(self) -> None:
        self._thread.join(_WAIT_SECONDS)

    def _run(self) -> None:
        call: Any = self._channel.unary_stream(_PATH)
        request = identity_pb2.WatchIpCacheRequest(from_revision=self._watch.revision)
        begun = time.perf_counter()
        for message in call(request.SerializeToString()):
            at = time.monotonic()
            self._open.set()
            found = identity_pb2.WatchIpCacheResponse.FromString(message)
            self.events += len(found.events)
            self.arrived.append((at, len(found.events)))
            if found.snapshot_complete or self.events >= self._watch.events > 0:
                break
        self.seconds = time.perf_counter() - begun


def main() -> None:
    """Watches as the standard input says."""
    watch = Watch(**json.loads(sys.stdin.readline()))
    streams = [_Stream(watch) for _ in range(watch.watchers)]
    for stream in streams:
        stream.start()
    if watch.revision:
        # Whoever resumes a watch is told at once that it is open.
        for stream in streams:
            stream.wait_open()
        print("open", flush=True)
    for stream in streams:
        stream.join()
    times = [[at for at, events in stream.arrived for _ in range(events)] for stream in streams]
    print(
        json.dumps(
            {
                "times": times if watch.events else [],
                "events": streams[0].events,
                "seconds": streams[0].seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
