"""A node of a variant: its namespace and devices, the datapath, and what packets are run by."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.datapath import KernelDatapath, NodeConfig, remove_pins
from services.loader.bpf.maps import Map
from services.loader.bpf.objects import load_object
from tests.fuzz.addresses import NODE4, NODE6, ROUTER4, ROUTER6
from tests.fuzz.host import MTU, NIC, make_devices, new_namespace, open_sockets
from tests.fuzz.kernel import KernelNode
from tests.fuzz.places import Devices
from tests.fuzz.rows import LIFETIMES
from tests.fuzz.trial import Trials
from tests.fuzz.variants import Variant

_SOURCES = str(Path(__file__).resolve().parents[2] / "bpf")
_PINS = "/sys/fs/bpf/fimbria"
_numbers = itertools.count()
_MAP_SIZES = {
    "ct4": 65536, "ct6": 65536, "nat4": 65536, "nat6": 65536, "frag4": 8192, "frag6": 8192, "policy": 16384,
    "ipcache4": 1024, "ipcache6": 1024, "ipcache4_lpm": 256, "ipcache6_lpm": 256,
    "block4": 256, "block6": 256,
}  # fmt: skip
_FLAGS = ("-DFIMBRIA_TEST",)
_PROGRAMS = (
    "from_container", "to_container", "from_overlay", "to_overlay", "from_host", "to_host", "from_netdev",
    "to_netdev",
)  # fmt: skip
# Not loaded where there is no overlay.
_OVERLAY_PROGRAMS = ("from_overlay", "to_overlay")


@contextmanager
def open_node(variant: Variant, cache_dir: str, source_dir: str | None = None) -> Iterator[KernelNode]:
    """A node of a variant with its namespace and pins, until the end of the block.

    ``source_dir`` has the programs' source, if it is not this tree's ``bpf``.
    """
    _sweep()
    pin_dir = f"{_PINS}/fuzz-{os.getpid()}-{next(_numbers)}"
    with new_namespace():
        devices = make_devices(variant)
        try:
            datapath = KernelDatapath.open(
                _config(variant, devices), pin_dir=pin_dir, source_dir=source_dir or _SOURCES,
                cache_dir=cache_dir, devices=[(NIC, devices.nic)], flags=_FLAGS,
            )  # fmt: skip
            try:
                with open_sockets(variant.sockets):
                    node = KernelNode(datapath, _trials(datapath, pin_dir, cache_dir), devices, variant)
                    yield node
                    node.close()
            finally:
                datapath.close()
        finally:
            remove_pins(pin_dir)


def _config(variant: Variant, devices: Devices) -> NodeConfig:
    has_ipv6 = 6 in variant.node_families
    return NodeConfig(
        "fuzz", NODE4, ROUTER4, ("10.244.1.0/24",), devices.host, devices.net, devices.vxlan, mtu=MTU,
        tcp_syn_seconds=LIFETIMES["syn"], tcp_established_seconds=LIFETIMES["established"],
        tcp_closing_seconds=LIFETIMES["closing"], any_seconds=LIFETIMES["any"], map_sizes=_MAP_SIZES,
        node_ipv6=NODE6 if has_ipv6 else "", router_ipv6=ROUTER6 if has_ipv6 else "",
        endpoint_routes=variant.endpoint_routes, host_routing=variant.host_routing,
        masquerade=variant.masquerade, masquerade_ports=variant.ports,
    )  # fmt: skip


def _trials(datapath: KernelDatapath, pin_dir: str, cache_dir: str) -> Trials:
    (compiled,) = compile_sources(str(Path(__file__).parent / "bpf"), ["fuzz_enter.c"], cache_dir)
    loaded = load_object(compiled.path, map_dir=f"{pin_dir}/fuzz", config={})
    table = Map("fuzz_programs", loaded.maps["fuzz_programs"])
    for place, name in enumerate(_PROGRAMS):
        if datapath.config.vxlan_ifindex or name not in _OVERLAY_PROGRAMS:
            table.put(struct.pack("=I", place), struct.pack("=I", datapath.program_fd(name)))
    return Trials(loaded.programs["fuzz_enter"].fd, {name: place for place, name in enumerate(_PROGRAMS)})


def _sweep() -> None:
    """Removes the pins of processes that are no more."""
    for path in Path(_PINS).glob("fuzz-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            remove_pins(str(path))
