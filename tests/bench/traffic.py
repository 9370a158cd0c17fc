"""TCP between two namespaces: round trips, connects and throughput, peers measured in turn."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path as FilePath

from tests.bench.figures import median
from tests.bench.namespaces import run, sysctl, within
from tests.bench.peers import Path

_SOURCE = FilePath(__file__).with_name("pingpong.c")


def build_pingpong(directory: FilePath) -> FilePath:
    """Compiles the latency program and returns its path."""
    binary = directory / "pingpong"
    compiler = "clang-19" if FilePath("/usr/bin/clang-19").exists() else "cc"
    run(compiler, "-O2", "-o", str(binary), str(_SOURCE))
    return binary


def round_trip_us(binary: FilePath, path: Path, *, connect: bool = False, count: int = 20000) -> float:
    """Microseconds a TCP round trip (or a connect-request-close) takes, both ends on one CPU."""
    mode = "connect" if connect else "rr"
    return float(run(str(binary), mode, path.server, path.client, path.address, "5201", str(count)))


@contextlib.contextmanager
def _iperf_server(path: Path) -> Iterator[None]:
    netns = os.path.basename(path.server)
    command = ["iperf3", "-s", "-p", "5202"]
    server = within(
        netns, lambda: subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )
    try:
        yield
    finally:
        server.kill()
        server.wait()


def throughput_gbit(path: Path, *, seconds: int = 2) -> float:
    """Gigabits a second that iperf3 carries over one TCP connection (congestion control reno)."""
    client = os.path.basename(path.client)
    command = ["iperf3", "-c", path.address, "-p", "5202", "-C", "reno", "-t", str(seconds), "-J"]
    with _iperf_server(path):
        deadline = time.monotonic() + 5
        while True:
            done = within(
                client, lambda: subprocess.run(command, capture_output=True, text=True, check=False)
            )
            result = json.loads(done.stdout)
            if "error" not in result:
                return float(result["end"]["sum_received"]["bits_per_second"]) / 1e9
            # The server may not listen yet.
            if time.monotonic() > deadline:
                raise RuntimeError(f"iperf3 to {path.address}: {result['error']}")
            time.sleep(0.05)


def use_reno(paths: Iterable[Path]) -> None:
    """The ends' congestion control: the default may be one that misbehaves without a real network between."""
    for path in paths:
        for end in (path.server, path.client):
            sysctl(os.path.basename(end), net__ipv4__tcp_congestion_control="reno")


@contextlib.contextmanager
def without_segmentation_offload(paths: Iterable[Path]) -> Iterator[None]:
    """The ends' devices get segments of the MTU's size meanwhile, each with the cost of a packet."""
    ends = [os.path.basename(end) for path in paths for end in (path.server, path.client)]
    try:
        for end in ends:
            run("ethtool", "-K", "eth0", "tso", "off", "gso", "off", netns=end)
        yield
    finally:
        for end in ends:
            run("ethtool", "-K", "eth0", "tso", "on", "gso", "on", netns=end)


def alternately(
    paths: Mapping[str, Path], measure: Callable[[Path], float], *, rounds: int
) -> dict[str, float]:
    """Measures each path once a round, in turn, and returns each one's median: noise hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            samples[name].append(measure(path))
    return {name: median(values) for name, values in samples.items()}
