"""Nanoseconds a program takes for a packet, by BPF_PROG_TEST_RUN, without what the measuring itself costs.

The kernel's own repeat count is not enough: each run gets the packet that the run before left, with one hop
less or another source address. So bpf/replay.c is run in place of the program: it puts the packet right,
gives it the next flow of a list and tail-calls the program. The same with an empty program in its place
is subtracted; the two are run in turn, and each one's median over the rounds counts.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.maps import Map
from services.loader.bpf.objects import LoadedObject, load_object
from services.loader.bpf.testrun import run_program
from tests.bench.figures import median

HEAD_BYTES = 80
MAX_FLOWS = 131072
_STATE = struct.Struct(f"={HEAD_BYTES}sIIIIIII4x")
_CURSOR = struct.Struct("=I")
_SOURCE = Path(__file__).with_name("bpf")


@dataclass(frozen=True)
class Stimulus:
    """Packets for a program: ``frame`` (at least HEAD_BYTES) of ``flows``, each four bytes of an address,
    written at ``address_offset``, and two ports, written at ``ports_offset``. Runs take the flows in this
    order, again and again.

    ``ifindex`` is the device that the packets are on; with ``vni`` they came through the tunnel, from
    ``tunnel_remote`` (four bytes).
    """

    frame: bytes
    flows: Sequence[bytes]
    address_offset: int
    ports_offset: int
    ifindex: int
    vni: int = 0
    tunnel_remote: bytes = b"\0\0\0\0"
    mark: int = 0


class Replay:
    """The feeding programs, loaded. Make it with :func:`replay`."""

    def __init__(self, loaded: LoadedObject) -> None:
        self._programs = {name: program.fd for name, program in loaded.programs.items()}
        self._maps = {name: Map(name, fd) for name, fd in loaded.maps.items()}
        self._flows: Sequence[bytes] | None = None
        self._target(1, self._programs["nothing"])

    def close(self) -> None:
        """Closes every descriptor."""
        for fd in self._programs.values():
            os.close(fd)
        for each in self._maps.values():
            each.close()

    def run(self, program: int, stimulus: Stimulus, repeat: int) -> tuple[int, float]:
        """Runs a program (by descriptor): its last action, and the nanoseconds a run with the feeding."""
        self._target(0, program)
        self._prepare(stimulus)
        return self._measure("replay_to_program", stimulus, repeat)

    def nanoseconds(
        self,
        program: int,
        stimulus: Stimulus,
        *,
        repeat: int,
        rounds: int,
        action: int,
        before: Callable[[], None] | None = None,
    ) -> float:
        """Nanoseconds that a program (by descriptor) takes for a packet, feeding not included.

        ``before`` is called before each of the rounds. Raises RuntimeError when the program does something
        else than ``action`` to the last packet of one.
        """
        self._target(0, program)
        self._prepare(stimulus)
        with_it, without = [], []
        for _ in range(rounds):
            if before:
                before()
            done, elapsed = self._measure("replay_to_program", stimulus, repeat)
            if done != action:
                raise RuntimeError(f"a program did {done} to a packet, expected {action}")
            with_it.append(elapsed)
            without.append(self._measure("replay_to_nothing", stimulus, repeat)[1])
        return median(with_it) - median(without)

    def _target(self, index: int, program: int) -> None:
        self._maps["replay_targets"].put(_CURSOR.pack(index), _CURSOR.pack(program))

    def _prepare(self, stimulus: Stimulus) -> None:
        if len(stimulus.frame) < HEAD_BYTES or not 0 < len(stimulus.flows) <= MAX_FLOWS:
            raise ValueError(
                f"a frame of {len(stimulus.frame)} bytes in {len(stimulus.flows)} flows; expected at least "
                f"{HEAD_BYTES} bytes in 1 to {MAX_FLOWS} flows"
            )
        if self._flows is not stimulus.flows:
            entries = [(_CURSOR.pack(index), flow) for index, flow in enumerate(stimulus.flows)]
            self._maps["replay_flows"].put_many(entries)
            self._flows = stimulus.flows
        self._write_state(stimulus)

    def _write_state(self, stimulus: Stimulus) -> None:
        (remote,) = _CURSOR.unpack(stimulus.tunnel_remote[::-1])
        state = _STATE.pack(
            stimulus.frame[:HEAD_BYTES], stimulus.address_offset, stimulus.ports_offset,
            len(stimulus.flows), 0, stimulus.vni, remote, stimulus.mark,
        )  # fmt: skip
        self._maps["replay_state"].put(_CURSOR.pack(0), state)

    def _measure(self, feeder: str, stimulus: Stimulus, repeat: int) -> tuple[int, float]:
        # From the first flow on.
        self._write_state(stimulus)
        done = run_program(self._programs[feeder], stimulus.frame, ifindex=stimulus.ifindex, repeat=repeat)
        if done.action == 0xFFFFFFFF:
            raise RuntimeError("the packet could not be fed")
        return done.action, done.nanoseconds


@contextmanager
def replay(cache_dir: str) -> Iterator[Replay]:
    """Loads the feeding programs; nothing is pinned or attached."""
    (compiled,) = compile_sources(str(_SOURCE), ["replay.c"], cache_dir)
    # Its maps are its own: the directory only says that none is to be found.
    made = Replay(load_object(compiled.path, map_dir="/sys/fs/bpf/none", config={}))
    try:
        yield made
    finally:
        made.close()
