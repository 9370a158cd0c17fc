"""IPAM by the number of addresses in use, and its memory over a million of them given and taken back."""

from __future__ import annotations

from pathlib import Path

from tests.bench.figures import Figure
from tests.bench.report import Table, plot
from tests.bench.scale import CALLERS, register
from tests.bench.scale_load import Job, run
from tests.bench.scale_processes import Server, server, sqlite

SIZES = (1_000, 10_000, 50_000, 100_000, 200_000, 500_000)
_NODES = 125
_BATCH = 1_000
_SECONDS = 0.5
_ROUNDS = 2
_ALONE = 150
# Out of the way of the owners of batches.
_FIRST = 1_000_000_000
_MOST_MB = 2.0
_FLAGS = (
    "--ipam-default-pool-cidr=10.0.0.0/8",
    "--ipam-default-pool-mask-size=19",
    "--ipam-hold-seconds=0",
)
_INTRODUCTION = f"""{_NODES} nodes, filled in calls for {_BATCH:,} owners each; at each size {CALLERS} callers
allocate and release one by one (the better of {_ROUNDS} rounds), then one caller who is alone
({_ALONE} calls, median). Flat is what it should be.
"""


def growth(directory: Path) -> tuple[Table, list[Figure]]:
    """The table, and the figures of memory of the same process."""
    rows, curves = [], []
    with server("services.ipam", directory, *_FLAGS, sqlite(directory, "growth"), name="growth") as ipam:
        register(ipam.local, _NODES)
        # To warm up.
        _cost(ipam)
        held = 0
        for size in SIZES:
            _batches(ipam, "allocate batches", held, size)
            held = size
            values = _cost(ipam)
            rows.append((f"{size:,}", *(f"{value:.0f} µs" for value in values[:2]), f"{values[2]:.2f} ms"))
            curves.append((size, values))
        full = ipam.resident_mb
        _batches(ipam, "release batches", 0, held)
        half = ipam.resident_mb
        for kind in ("allocate batches", "release batches"):
            _batches(ipam, kind, 0, held)
        whole = ipam.resident_mb
    header = ("addresses in use", "allocation, CPU of the server", "release, CPU of the server",
              "allocation, one caller, p50")  # fmt: skip
    names = ("allocation, of the server's processors, µs", "release, of the server's processors, µs",
             "allocation, one caller, ms")  # fmt: skip
    pairs = 2 * held
    memory = Figure(
        f"memory that ipam gains over the second half of {pairs:,} allocations and releases",
        whole - half,
        "MB",
        goal=f"<= {_MOST_MB:g} MB",
        met=whole - half <= _MOST_MB,
        note=f"resident: {full:.0f} MB with {held:,} addresses in use, {half:.0f} MB when they had been "
        f"released, {whole:.0f} MB after as many again",
    )
    return Table(header, rows, _INTRODUCTION + plot(names, curves)), [memory]


def _batches(ipam: Server, kind: str, first: int, last: int) -> None:
    """Gives or takes the addresses of the owners `first` to `last` - 1."""
    run(
        Job(
            ipam.local, kind, callers=2, seconds=100.0, first=first // _BATCH,
            count=(last - first) // _BATCH, nodes=_NODES, size=_BATCH,
        )
    )  # fmt: skip


def _cost(ipam: Server) -> tuple[float, float, float]:
    """What an allocation and a release take of the processors in µs, and the median of one caller in ms."""
    taken, given = [], []
    for _ in range(_ROUNDS):
        before = ipam.cpu_seconds
        calls = run(
            Job(ipam.local, "allocate", callers=CALLERS, seconds=_SECONDS, first=_FIRST, nodes=_NODES)
        ).calls
        between = ipam.cpu_seconds
        _release(ipam, calls)
        taken.append((between - before) / calls * 1e6)
        given.append((ipam.cpu_seconds - between) / calls * 1e6)
    alone = run(
        Job(ipam.local, "allocate", callers=1, seconds=30.0, first=_FIRST, count=_ALONE, nodes=_NODES)
    )
    _release(ipam, _ALONE)
    return min(taken), min(given), alone.p50


def _release(ipam: Server, count: int) -> None:
    run(Job(ipam.local, "release", callers=CALLERS, seconds=30.0, first=_FIRST, count=count, nodes=_NODES))
