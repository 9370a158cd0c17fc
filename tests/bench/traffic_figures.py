"""The traffic figures: TCP between pods, beside the kernel's own ways between namespaces."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path as FilePath

from tests.bench import fimbria
from tests.bench.figures import Figure
from tests.bench.peers import Path, direct_veth, routed_veth, routed_vxlan
from tests.bench.traffic import (
    alternately,
    build_pingpong,
    round_trip_us,
    throughput_gbit,
    use_reno,
    without_segmentation_offload,
)

_NEAR, _FAR = "pod to pod on one node", "pod to pod across nodes"
_PEER_NAMES = {
    "direct": "veth pair between the two",
    "routed": "routed veth",
    "vxlan": "routed over a VXLAN device",
}
_LATENCY_ROUNDS, _THROUGHPUT_ROUNDS = 9, 7


def traffic(directory: FilePath) -> list[Figure]:
    """Measures round trips, connects and throughput, with and without segmentation offload."""
    binary = build_pingpong(directory)
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(fimbria.lab(directory / "lab"))
        near, far = fimbria.pods(lab)
        paths = {"near": near, "far": far}
        for name, peer in (("direct", direct_veth), ("routed", routed_veth), ("vxlan", routed_vxlan)):
            paths[name] = stack.enter_context(peer())
        use_reno(paths.values())
        return [*_latency(binary, paths), *_throughput(paths)]


def _latency(binary: FilePath, paths: Mapping[str, Path]) -> list[Figure]:
    figures = []
    for name, measure, of_direct in (
        ("TCP round trip", partial(round_trip_us, binary), 1.08),
        ("TCP connect, request, close", partial(round_trip_us, binary, connect=True, count=5000), None),
    ):
        _tell(name)
        found = alternately(paths, measure, rounds=_LATENCY_ROUNDS)
        near, far = (f"{name}, both ends on one core, {where}" for where in (_NEAR, _FAR))
        figures += [
            _beside(near, "µs", found, "near", "direct", of_direct),
            _beside(near, "µs", found, "near", "routed", 1.0),
            _beside(far, "µs", found, "far", "vxlan", 1.0),
        ]
    return figures


def _throughput(paths: Mapping[str, Path]) -> list[Figure]:
    name = "TCP throughput (iperf3)"
    _tell(name)
    among = {key: path for key, path in paths.items() if key != "direct"}
    found = alternately(among, throughput_gbit, rounds=_THROUGHPUT_ROUNDS)
    _tell(f"{name} without segmentation offload")
    small = {key: among[key] for key in ("near", "routed")}
    with without_segmentation_offload(small.values()):
        found_small = alternately(small, throughput_gbit, rounds=_THROUGHPUT_ROUNDS)
    return [
        _beside(f"{name}, {_NEAR}", "Gbit/s", found, "near", "routed", 1.0),
        _beside(f"{name}, {_FAR}", "Gbit/s", found, "far", "vxlan", 1.0),
        _beside(f"{name}, {_NEAR}, TSO and GSO off", "Gbit/s", found_small, "near", "routed", 1.4),
    ]


def _beside(
    name: str, unit: str, found: Mapping[str, float], ours: str, peer: str, goal: float | None
) -> Figure:
    """Ours beside a peer. ``goal`` is a ratio: at most for a time, at least for a throughput."""
    value, other = found[ours], found[peer]
    more_is_better = unit == "Gbit/s"
    words, met = None, None
    if goal is not None:
        met = value >= goal * other if more_is_better else value <= goal * other
        words = f"{'>=' if more_is_better else '<='} {goal:g} x peer" if goal != 1 else "at least as good"
    return Figure(name, value, unit, other, _PEER_NAMES[peer], words, met)


def _tell(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
