"""The two programs of nat_test.c, fed with packets by BPF_PROG_TEST_RUN, and their maps."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from services.loader.bpf.errors import BpfError
from services.loader.bpf.maps import Map
from services.loader.bpf.nat import EXCLUDED, Kind, NatEntry, exclusion_key
from services.loader.bpf.native import check, ffi, lib, sized
from services.loader.bpf.objects import load_object
from services.loader.bpf.testrun import TC_ACT_OK, TC_ACT_SHOT
from tests.kernel.nat.frames import UDP, V4, V6, Family, Packet, build, take_apart

TRANSLATED = 1
NO_MAPPING = 167

_LOOPBACK = 1
_SKB_BYTES = 192
_SKB_MARK = 8
_SKB_IFINDEX = 40
# BPF_F_TEST_SKB_CHECKSUM_COMPLETE, Linux 6.16: EBADMSG if the program leaves the packet's sum wrong.
_CHECKSUM_COMPLETE = 4


class Constants(dict[str, bytes]):
    """Zero for whatever the programs declare and masquerading does not use."""

    def get(self, name: str, default: object = None) -> bytes:
        return self[name] if name in self else bytes(16 if name.endswith("ipv6") else 4)


@dataclass(frozen=True)
class Outcome:
    """What became of a packet: ``mark`` 0 untouched, 1 translated, else the reason for its drop."""

    action: int
    mark: int
    frame: bytes

    @property
    def packet(self) -> Packet:
        """The translated packet; asserts that it is one."""
        assert (self.action, self.mark) == (TC_ACT_OK, TRANSLATED), self
        return take_apart(self.frame)

    @property
    def untouched(self) -> bool:
        return (self.action, self.mark) == (TC_ACT_OK, 0)

    @property
    def dropped_for(self) -> int | None:
        return self.mark if self.action == TC_ACT_SHOT else None


@contextmanager
def summed() -> Iterator[None]:
    """For runs with ``complete``. EBADMSG, that the sum is wrong, is an error as any other."""
    try:
        yield
    except BpfError as error:
        if error.errno == errno.EINVAL:
            pytest.skip("this kernel, before 6.16, cannot test-run with CHECKSUM_COMPLETE")
        raise


class Translator:
    """A node that translates. Owns what it has loaded; the maps are pinned in ``map_dir``."""

    def __init__(self, path: str, map_dir: str, constants: Mapping[str, bytes]) -> None:
        loaded = load_object(path, map_dir=map_dir, config=Constants(constants))
        self.programs = loaded.programs
        self.maps = {name: Map(name, fd) for name, fd in loaded.maps.items()}

    def close(self) -> None:
        for program in self.programs.values():
            os.close(program.fd)
        for each in self.maps.values():
            each.close()

    def leave(self, packet: Packet | bytes, *, complete: bool = False) -> Outcome:
        """To the world. ``complete``: with a sum over the whole packet, which is verified afterwards."""
        return self._run("nat_out", packet, complete)

    def arrive(self, packet: Packet | bytes, *, complete: bool = False) -> Outcome:
        """From the world."""
        return self._run("nat_in", packet, complete)

    def race(self, family: Family, *, same: bool) -> list[tuple[int, int]]:
        """Two CPUs at once want ports, for flows of two pods or for the same one; a new peer port each round.

        Returns what they got, by round; 0 is none.
        """
        return self._race(family, [same << 1, 1 | same << 1])

    def race_lost(self, family: Family) -> list[int]:
        """One CPU wants ports for flows whose original entry another has made since it looked for one."""
        return [first for first, _ in self._race(family, [4])]

    def _race(self, family: Family, marks: list[int]) -> list[tuple[int, int]]:
        table = self.maps["test_race"]
        rounds = (table.definition.value_size - 8) // 8
        table.put(bytes(4), bytes(table.definition.value_size))
        frame = build(family, family.pod, family.peer, UDP, 1, 1).frame()
        with ThreadPoolExecutor(len(marks)) as pool:
            for run in [pool.submit(self._run, "nat_race", frame, False, mark=mark) for mark in marks]:
                run.result()
        data = table.get(bytes(4))
        assert data is not None
        ports = struct.unpack(f"=8x{2 * rounds}I", data)
        return list(zip(ports[:rounds], ports[rounds:], strict=True))

    def _run(self, program: str, packet: Packet | bytes, complete: bool, *, mark: int = 0) -> Outcome:
        data = packet if isinstance(packet, bytes) else packet.frame()
        context = bytearray(_SKB_BYTES)
        struct.pack_into("=I", context, _SKB_MARK, mark)
        struct.pack_into("=I", context, _SKB_IFINDEX, _LOOPBACK)
        context_in, context_out = ffi.from_buffer(context), ffi.new("char[]", _SKB_BYTES)
        data_in, data_out = ffi.from_buffer(data), ffi.new("char[]", len(data))
        options = sized(
            "struct bpf_test_run_opts",
            data_in=data_in, data_size_in=len(data), data_out=data_out, data_size_out=len(data),
            ctx_in=context_in, ctx_size_in=_SKB_BYTES, ctx_out=context_out, ctx_size_out=_SKB_BYTES,
            flags=_CHECKSUM_COMPLETE if complete else 0,
        )  # fmt: skip
        check(lib.bpf_prog_test_run_opts(self.programs[program].fd, options), f"run {program}")
        (left,) = struct.unpack_from("=I", ffi.buffer(context_out), _SKB_MARK)
        return Outcome(int(options.retval), left, bytes(ffi.buffer(data_out)))

    def table(self, family: Family) -> Map:
        return self.maps["nat6" if family.v6 else "nat4"]

    def entries(self, kind: Kind | None = None) -> list[NatEntry]:
        """Every entry of both families, or those of one kind."""
        found = [
            NatEntry.unpack(key, value) for name in ("nat4", "nat6") for key, value in self.maps[name].items()
        ]
        return [entry for entry in found if kind in (None, entry.kind)]

    def forget(self, entry: NatEntry) -> None:
        """As the LRU does."""
        assert self.table(V6 if ":" in entry.source else V4).delete(entry.pack()[0])

    def exclude(self, prefix: str) -> None:
        version, key = exclusion_key(prefix)
        self.maps[f"nat_exclude{version}"].put(key, EXCLUDED)

    def known(self) -> tuple[bytes, bytes, bytes, int, int]:
        """What the last run's program knew of its packet in the end: source, destination, the flow's source;

        Ports.
        """
        data = self.maps["test_packet"].get(bytes(4))
        assert data is not None
        sport, dport = struct.unpack_from("!HH", data, 48)
        return data[:16], data[16:32], data[32:48], sport, dport

    def both(self, original: NatEntry) -> tuple[NatEntry, NatEntry]:
        """The pair of an original entry."""
        expected = reverse_of(original)
        (found,) = [entry for entry in self.entries(Kind.REVERSE) if replace(entry, created=0) == expected]
        return original, found


def reverse_of(original: NatEntry) -> NatEntry:
    """What the other entry of a pair must be, but for its age."""
    echo = original.protocol in (1, 58)
    return NatEntry(
        Kind.REVERSE, original.protocol,
        original.destination, original.to_port if echo else original.destination_port,
        original.to, original.to_port, original.source, original.source_port, 0,
    )  # fmt: skip
