"""The machine that C tests run on: devices in a namespace, the datapath and one test object in the kernel."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

from services.loader.bpf.datapath import SOURCES
from services.loader.bpf.maps import Map, MapDefinition
from services.loader.bpf.native import check, check_pointer, ffi, lib, sized
from services.loader.bpf.objects import LoadedObject, load_object
from services.loader.bpf.pins import remove_pins
from tests.kernel.bpf.namespaces import Namespace, Namespaces, run
from tests.kernel.ctests.layout import (
    CONTEXT_NEEDS_LAUNCHER,
    EVENTS,
    LAUNCH_FAILED,
    NO_FORWARD,
    TEST_DONE,
    VALUE_SIZES,
    Context,
    Outcome,
    Report,
    frame_bytes,
    pack_event,
    pack_frame,
    pack_result,
)
from tests.kernel.ctests.objects import LAUNCHER, CTest, compile_source

# As in bpf/tests/lib/hosts.h.
NODE, ROUTER, NODE6, ROUTER6 = "172.31.0.1", "10.244.1.1", "fd00:172:31::1", "fd00:244:1::1"
NEIGHBOURS = ("172.31.0.2", "172.31.0.254", "fd00:172:31::2", "fd00:172:31::fe")
MTU, OVERLAY_OVERHEAD = 1500, 50
MAC = "02:00:00:00:ff:{:02x}"
# Small enough to be emptied between two tests.
MAP_SIZES = {
    "ct4": 4096, "ct6": 4096, "frag4": 1024, "frag6": 1024, "nat4": 4096, "nat6": 4096, "policy": 4096,
    "ipcache4": 1024, "ipcache6": 1024, "ipcache4_lpm": 256, "ipcache6_lpm": 256,
    "block4": 256, "block6": 256,
    "endpoint_slot": 64, "endpoint_index": 1024, "edt_next": 64, "endpoint_dev": 64, "endpoint_ip4": 64,
    "endpoint_ip6": 64, "subject": 64, "subject_array": 64,
}  # fmt: skip

VARIANT_NATIVE, VARIANT_ENDPOINT_ROUTES, VARIANT_STACK_ROUTING, VARIANT_NO_MASQUERADE = 1, 2, 4, 8

_HASHES, _ARRAYS, _RINGBUF = (1, 5, 9, 10, 11), (2, 6), 27  # enum bpf_map_type
_PERCPU_ARRAY = 6
_SKB_BYTES = 192  # struct __sk_buff
_SKB = {
    "mark": 8, "priority": 32, "ingress_ifindex": 36, "ifindex": 40, "cb": 48, "tstamp": 152,
    "gso_segs": 164, "gso_size": 176,
}  # fmt: skip
_ROOM = 20000  # of a frame that a program lengthens


class CTestFailure(AssertionError):
    """A C test failed; the message says where."""


class Machine:
    """Runs C tests. Make it with :func:`machine`, in whose namespace it works."""

    def __init__(self, namespace: Namespace, map_dir: str) -> None:
        self._namespace = namespace
        self._map_dir = map_dir
        self._maps: dict[str, Map] = {}
        self._zeros: dict[str, list[tuple[bytes, bytes]]] = {}
        self._fds: list[int] = []
        self._datapaths: dict[int, dict[str, int]] = {}
        self._datapath(0)
        self._launch = self._load(LAUNCHER)["launch"]
        self._loaded: tuple[str, dict[str, int], list[int]] | None = None
        self._events: list[bytes] = []
        self._on_event = ffi.callback("int(void *, void *, size_t)", self._take_event)
        self._reader: Any = check_pointer(
            lib.ring_buffer__new(self._maps["events"].fd, self._on_event, ffi.NULL, ffi.NULL),
            "open the event ring buffer",
        )
        for name, size in VALUE_SIZES.items():
            assert self._maps[name].definition.value_size == size, f"{name} has another layout in C"

    def close(self) -> None:
        """Closes everything; the pins go with the directory."""
        lib.ring_buffer__free(self._reader)
        self._unload_tests()
        for fd in self._fds:
            os.close(fd)
        for bpf_map in self._maps.values():
            bpf_map.close()

    def run(self, test: CTest) -> Report:
        """Runs a test on empty maps. Raises CTestFailure."""
        programs = self._programs_of(test.source)
        with self._namespace.entered():
            self._clear()
            if test.setup:
                self._part(programs[test.setup], test.setup)
            for number, (pktgen, checker) in enumerate(zip(test.pktgens, test.checks, strict=True), start=1):
                self._packet(programs[pktgen], pktgen, f"packet {number}")
                if checker:
                    self._part(programs[checker], checker)
        return Report.unpack(self._get("test_report"))

    def value(self, name: str, index: int = 0) -> bytes:
        """An element of one of the tests' arrays, as the last test left it."""
        return self._get(name, index)

    def _packet(self, pktgen: int, name: str, label: str) -> None:
        for each in ("test_context", "test_result"):
            self._put(each, bytes(VALUE_SIZES[each]))
        self._empty(self._maps["metrics"])
        for index in range(2):
            self._put("test_frames", bytes(VALUE_SIZES["test_frames"]), index)
        self._part(pktgen, name)
        context, sent = Context.unpack(self._get("test_context")), self._get("test_frames")
        if context.program not in self._datapath(context.variant):
            raise CTestFailure(f"{name}: there is no program {context.program}")
        # What a shortened frame leaves behind its end is not part of it.
        sent = pack_frame(frame_bytes(sent), sent)
        self._put("test_frames", sent)
        self._drain()
        if "test_forward" in self._maps:
            self._put("test_forward", NO_FORWARD)
        outcome = self._run_datapath(context, frame_bytes(sent), label)
        events = self._drain()
        for index in range(EVENTS):
            self._put("test_events", pack_event(events[index] if index < len(events) else b""), index)
        forward = self._get("test_forward") if "test_forward" in self._maps else NO_FORWARD
        self._put("test_result", pack_result(outcome, len(events), forward))
        self._put("test_frames", pack_frame(outcome.frame, sent), 1)

    def _run_datapath(self, context: Context, frame: bytes, label: str) -> Outcome:
        program = self._datapath(context.variant)[context.program]
        if context.flags & CONTEXT_NEEDS_LAUNCHER:
            self._maps["test_program"].put(_u32(0), _u32(program))
            program = self._launch
        outcome = run_program(program, frame, context)
        if program == self._launch and outcome.action == LAUNCH_FAILED:
            raise CTestFailure(f"{label}: the launcher cannot give it what its context asks for")
        return outcome

    def _part(self, fd: int, name: str) -> None:
        """Runs a program of the test's own; it needs no packet, but the kernel one for it."""
        outcome = run_program(fd, bytes(14), None)
        if outcome.action != TEST_DONE:
            raise CTestFailure(f"{name} did not run to its end")

    def _clear(self) -> None:
        for name, bpf_map in self._maps.items():
            kind = bpf_map.definition.type
            if kind in _HASHES:
                bpf_map.delete_many([key for key, _ in bpf_map.items()])
            elif kind in _ARRAYS and name != "test_frames":
                self._empty(bpf_map)
        self._drain()

    def _empty(self, bpf_map: Map) -> None:
        """Writes zeros into every element of an array."""
        zeros = self._zeros.get(bpf_map.name)
        if zeros is None:
            empty = bytes(_value_bytes(bpf_map.definition))
            zeros = [(_u32(key), empty) for key in range(bpf_map.definition.max_entries)]
            self._zeros[bpf_map.name] = zeros
        bpf_map.put_many(zeros)

    def _programs_of(self, source: str) -> dict[str, int]:
        """The programs of one test object; another's are let go, their number of descriptors is large."""
        if self._loaded is None or self._loaded[0] != source:
            self._unload_tests()
            before = len(self._fds)
            programs = self._load(source)
            self._loaded = source, programs, self._fds[before:]
            del self._fds[before:]
        return self._loaded[1]

    def _unload_tests(self) -> None:
        if self._loaded is not None:
            for fd in self._loaded[2]:
                os.close(fd)
            self._loaded = None

    def _datapath(self, variant: int) -> dict[str, int]:
        """The programs under test by name. Variants share the maps."""
        if variant not in self._datapaths:
            programs: dict[str, int] = {}
            for source in SOURCES:
                programs |= self._load(source, variant)
            self._datapaths[variant] = programs
        return self._datapaths[variant]

    def _load(self, source: str, variant: int = 0) -> dict[str, int]:
        path = compile_source(source)
        with self._namespace.entered():
            constants = _constants(variant)
            loaded: LoadedObject = load_object(
                str(path), map_dir=self._map_dir, config=constants, map_sizes=MAP_SIZES
            )
        for name, fd in loaded.maps.items():
            if name in self._maps:
                os.close(fd)
            else:
                self._maps[name] = Map(name, fd)
        self._fds += [program.fd for program in loaded.programs.values()]
        return {name: program.fd for name, program in loaded.programs.items()}

    def _take_event(self, _context: object, data: Any, size: int) -> int:
        self._events.append(bytes(ffi.buffer(data, size)))
        return 0

    def _drain(self) -> list[bytes]:
        check(lib.ring_buffer__consume(self._reader), "read events")
        events, self._events = self._events, []
        return events

    def _get(self, name: str, index: int = 0) -> bytes:
        value = self._maps[name].get(_u32(index))
        assert value is not None
        return value

    def _put(self, name: str, value: bytes, index: int = 0) -> None:
        self._maps[name].put(_u32(index), value)


def run_program(fd: int, frame: bytes, context: Context | None) -> Outcome:
    """BPF_PROG_TEST_RUN. Raises BpfError; EINVAL for a frame that the kernel takes for cut off."""
    skb = bytearray(_SKB_BYTES)
    if context is not None:
        for name in ("mark", "priority", "ingress_ifindex", "ifindex", "gso_segs", "gso_size"):
            struct.pack_into("=I", skb, _SKB[name], getattr(context, name))
        struct.pack_into("=5I", skb, _SKB["cb"], *context.cb)
        struct.pack_into("=Q", skb, _SKB["tstamp"], context.tstamp)
    skb_out = ffi.new("char[]", _SKB_BYTES)
    data_out = ffi.new("char[]", _ROOM)
    skb_in, data_in = ffi.from_buffer(skb), ffi.from_buffer(frame)
    options = sized(
        "struct bpf_test_run_opts",
        data_in=data_in, data_size_in=len(frame), data_out=data_out, data_size_out=_ROOM,
        ctx_in=skb_in, ctx_size_in=_SKB_BYTES, ctx_out=skb_out, ctx_size_out=_SKB_BYTES,
        repeat=context.repeat if context is not None else 1,
    )  # fmt: skip
    check(lib.bpf_prog_test_run_opts(fd, options), "run a program on a packet")
    out = ffi.buffer(skb_out)
    mark, priority = (struct.unpack_from("=I", out, _SKB[name])[0] for name in ("mark", "priority"))
    (tstamp,) = struct.unpack_from("=Q", out, _SKB["tstamp"])
    cb = struct.unpack_from("=5I", out, _SKB["cb"])
    action = struct.unpack("=i", struct.pack("=I", options.retval))[0]
    return Outcome(action, mark, priority, cb, tstamp, bytes(ffi.buffer(data_out, options.data_size_out)))


@contextmanager
def machine(pin_dir: str) -> Iterator[Machine]:
    """A machine with its namespace and pins, both gone afterwards."""
    with Namespaces() as namespaces:
        namespace = namespaces.make("ctests")
        with namespace.entered():
            _add_devices()
        try:
            os.makedirs(f"{pin_dir}/maps", mode=0o700, exist_ok=True)
            made = Machine(namespace, f"{pin_dir}/maps")
            try:
                yield made
            finally:
                made.close()
        finally:
            remove_pins(pin_dir)


def _add_devices() -> None:
    """Devices, and the routes that bpf_fib_lookup() finds. No program is attached to any."""
    for scope in ("all", "default"):
        run("sysctl", "-q", "-w", f"net.ipv6.conf.{scope}.disable_ipv6=0")
    for version in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        run("sysctl", "-q", "-w", f"net.{version}=1")
    pairs = [("lxc_a", "pod_a"), ("lxc_b", "pod_b"), ("nic", "wire"), ("fimbria_host", "fimbria_net")]
    for number, (device, peer) in enumerate(pairs):
        run("ip", "link", "add", device, "address", MAC.format(number), "type", "veth", "peer", "name", peer)
        run("ip", "link", "set", peer, "up")
        run("ip", "link", "set", device, "up")
    run("ip", "link", "add", "fimbria_vxlan", "type", "vxlan", "external", "dstport", "4789")
    run("ip", "link", "set", "fimbria_vxlan", "mtu", str(MTU - OVERLAY_OVERHEAD), "up")
    run("ip", "address", "add", f"{ROUTER}/32", "dev", "fimbria_host")
    run("ip", "address", "add", f"{NODE}/24", "dev", "nic")
    run("ip", "address", "add", f"{ROUTER6}/128", "dev", "fimbria_host", "nodad")
    run("ip", "address", "add", f"{NODE6}/64", "dev", "nic", "nodad")
    for address in NEIGHBOURS:
        run("ip", "neigh", "add", address, "lladdr", "02:00:00:00:ee:01", "dev", "nic", "nud", "permanent")
    run("ip", "route", "add", "default", "via", "172.31.0.254")
    run("ip", "-6", "route", "add", "default", "via", "fd00:172:31::fe")


def _constants(variant: int = 0) -> dict[str, bytes]:
    """The constants of bpf/lib/config.h, and the devices of bpf/tests/lib/test.h."""
    index = socket.if_nametoindex
    numbers = {
        "host_ifindex": index("fimbria_host"),
        "net_ifindex": index("fimbria_net"),
        "vxlan_ifindex": 0 if variant & VARIANT_NATIVE else index("fimbria_vxlan"),
        "vxlan_port": 4789,
        "mtu": MTU,
        "route_mtu": MTU if variant & VARIANT_NATIVE else MTU - OVERLAY_OVERHEAD,
        "endpoint_routes": int(bool(variant & VARIANT_ENDPOINT_ROUTES)),
        "host_routing": int(not variant & VARIANT_STACK_ROUTING),
        "masquerade": int(not variant & VARIANT_NO_MASQUERADE),
        "nat_port_min": 61000,
        "nat_port_max": 65535,
        "ct_tcp_syn": 60,
        "ct_tcp_established": 8000,
        "ct_tcp_closing": 10,
        "ct_any": 50,
        **{f"{name}_ifindex": index(name) for name in ("lxc_a", "lxc_b", "nic")},
    }
    addresses = {"node_ipv4": NODE, "router_ipv4": ROUTER, "node_ipv6": NODE6, "router_ipv6": ROUTER6}
    return {
        **{name: _u32(value) for name, value in numbers.items()},
        **{name: ip_address(address).packed for name, address in addresses.items()},
    }


def _value_bytes(definition: MapDefinition) -> int:
    """What a value takes outside the kernel: one of a per-CPU map has a copy for each CPU."""
    if definition.type == _PERCPU_ARRAY:
        return (definition.value_size + 7 & ~7) * int(lib.libbpf_num_possible_cpus())
    return definition.value_size


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)
