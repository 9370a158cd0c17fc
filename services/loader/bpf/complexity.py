"""``python -m services.loader.bpf.complexity``: what the verifier goes through for each program, as a table.

Needs root, clang and bpffs. Loads into a pin directory of its own and attaches to nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.config import NodeConfig
from services.loader.bpf.datapath import SOURCES
from services.loader.bpf.errors import BpfError, DatapathUnavailable
from services.loader.bpf.objects import LoadedObject, load_object
from services.loader.bpf.pins import PinDirectory, remove_pins

# Sizes do not count for the verifier; small ones are made faster.
_SMALL = {"ct4": 1024, "policy": 1024, "ipcache4": 1024, "frag4": 1024}


def main(argv: list[str] | None = None) -> int:
    """Prints the table. Returns 1 with a message on stderr where the programs cannot be loaded."""
    parser = argparse.ArgumentParser(description="Verified instructions per BPF program.")
    parser.add_argument("--source-dir", default="bpf", help="where bpf_*.c are (default: %(default)s)")
    parser.add_argument(
        "--bpffs", default="/sys/fs/bpf", help="a mounted BPF file system (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    # As on a node with an overlay: a constant that is 0 would switch code off.
    config = NodeConfig("complexity", "192.0.2.1", "198.51.100.1", ("198.51.100.0/24",), 1, 1, 1)
    pins = PinDirectory(os.path.join(options.bpffs, "fimbria", f"complexity-{os.getpid()}"))
    print(f"{'program':<16} {'object':<16} {'verified insns':>14} {'object load ms':>15}")
    try:
        pins.make(())
        with tempfile.TemporaryDirectory() as cache:
            for source in compile_sources(options.source_dir, SOURCES, cache):
                obj = load_object(source.path, map_dir=pins.maps, config=config.constants(), map_sizes=_SMALL)
                _print(Path(source.source).name, obj)
    except (DatapathUnavailable, BpfError) as error:
        print(f"complexity: {error}", file=sys.stderr)
        return 1
    finally:
        remove_pins(pins.path)
    return 0


def _print(source: str, obj: LoadedObject) -> None:
    for program in obj.programs.values():
        print(f"{program.name:<16} {source:<16} {program.verified_insns:>14} {obj.seconds * 1000:>15.1f}")
        os.close(program.fd)
    for fd in obj.maps.values():
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
