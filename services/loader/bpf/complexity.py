"""``python -m services.loader.bpf.complexity``: what the verifier goes through for each program, as a table.

Every program with all that it can do switched on, and again in the leanest configuration, where the verifier
removes what is off. Needs root, clang and bpffs. Loads into a pin directory of its own, attaches to nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.config import NodeConfig
from services.loader.bpf.datapath import SOURCES
from services.loader.bpf.errors import BpfError, DatapathUnavailable
from services.loader.bpf.objects import instructions, load_object
from services.loader.bpf.pins import PinDirectory, remove_pins

# Sizes do not count for the verifier; small ones are made faster.
_SMALL = dict.fromkeys(
    ("ct4", "ct6", "policy", "ipcache4", "ipcache6", "frag4", "frag6", "nat4", "nat6"), 1024
)

# As on a node with everything: a constant that is 0 would switch code off.
_FULL = NodeConfig(
    "complexity", "192.0.2.1", "198.51.100.1", ("198.51.100.0/24",), 1, 1, 1,
    node_ipv6="2001:db8::1", router_ipv6="2001:db8:1::1",
    endpoint_routes=False, host_routing=True, masquerade=True,
)  # fmt: skip
_LEAN = NodeConfig("complexity", "192.0.2.1", "198.51.100.1", ("198.51.100.0/24",), 1, 1, 0)

_LIMIT = 1_000_000


def main(argv: list[str] | None = None) -> int:
    """Prints the table. Returns 1 with a message on stderr where the programs cannot be loaded."""
    parser = argparse.ArgumentParser(description="Verified instructions per BPF program.")
    parser.add_argument("--source-dir", default="bpf", help="where bpf_*.c are (default: %(default)s)")
    parser.add_argument(
        "--bpffs", default="/sys/fs/bpf", help="a mounted BPF file system (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as cache:
            full, lean = (_measure(config, options, cache) for config in (_FULL, _LEAN))
    except (DatapathUnavailable, BpfError) as error:
        print(f"complexity: {error}", file=sys.stderr)
        return 1
    print(_page(full, lean))
    return 0


@dataclass(frozen=True, slots=True)
class _Cost:
    source: str
    verified: int
    instructions: int
    load_ms: float


def _measure(config: NodeConfig, options: argparse.Namespace, cache: str) -> dict[str, _Cost]:
    pins = PinDirectory(os.path.join(options.bpffs, "fimbria", f"complexity-{os.getpid()}"))
    found = {}
    try:
        pins.make(())
        for source in compile_sources(options.source_dir, SOURCES, cache):
            obj = load_object(source.path, map_dir=pins.maps, config=config.constants(), map_sizes=_SMALL)
            for program in obj.programs.values():
                found[program.name] = _Cost(
                    source.source, program.verified_insns, instructions(program.fd), obj.seconds * 1000
                )
                os.close(program.fd)
            for fd in obj.maps.values():
                os.close(fd)
    finally:
        remove_pins(pins.path)
    return found


def _page(full: dict[str, _Cost], lean: dict[str, _Cost]) -> str:
    lines = [
        "# What the verifier goes through",
        "",
        "`make complexity` writes this page, so that a change shows what it costs.",
        f"Linux {os.uname().release.split('-')[0]}, whose limit is {_LIMIT:,} instructions a program.",
        "All on: both families, overlay, host routing, masquerading. Lean: without the last two. The load",
        "time is that of the whole object.",
        "",
        "| program | source | instructions | verified, all on | of the limit | verified, lean | load, ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, cost in full.items():
        lines.append(
            f"| {name} | {cost.source} | {cost.instructions:,} | {cost.verified:,} "
            f"| {cost.verified / _LIMIT:.1%} | {lean[name].verified:,} | {cost.load_ms:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
