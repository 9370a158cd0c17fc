"""Flows with sequence numbers, and what became of every number.

A process of its own makes the traffic (:mod:`tests.crash.generator`), so that whatever the test does delays
no packet. It answers a line on its standard input with a line of what it has seen; times are of the monotonic
clock, which all processes share.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

FlowKind: TypeAlias = Literal["udp", "fresh", "tcp"]

# A packet that has not arrived after so long is lost: the path is a few devices of one machine.
GRACE_SECONDS = 1.0
# How long a doubtful one is given when the machine is busy with other things.
DOUBT_SECONDS = 3.0


@dataclass(frozen=True)
class Flow:
    """A flow from one namespace (a path) to an address in another, one packet every ``interval`` seconds.

    ``kind``: "udp" is one flow and "tcp" one connection, answered packet by packet; "fresh" is UDP with
    another source port for every packet, so that each of them needs a verdict. ``passes``: every packet has
    to arrive and its answer too; otherwise none may.
    """

    name: str
    kind: FlowKind
    source: str
    destination: str
    address: str
    port: int
    interval: float
    passes: bool = True
    opener: str = ""


@dataclass(frozen=True)
class Fault:
    """What became of a sequence number that should not have, and when it was sent."""

    flow: str
    sequence: int
    what: str
    time: float

    def __str__(self) -> str:
        return f"{self.time:.3f} {self.flow} #{self.sequence}: {self.what}"


@dataclass(frozen=True)
class Seen:
    """What the generator has seen of its flows so far: how many packets it sent, and what went wrong."""

    sent: dict[str, int]
    faults: tuple[Fault, ...]


class Traffic:
    """Traffic that goes on until the block of :func:`traffic` ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._known: set[tuple[str, int, str]] = set()
        self.sent: dict[str, int] = {}

    def faults(self) -> list[Fault]:
        """Faults that have not been told of before, by time. A packet that is late is no fault, however late
        it is.
        """
        found = self._ask("report")
        if found.faults:
            # The machine may have stood still; what is lost stays lost.
            time.sleep(DOUBT_SECONDS)
            found = self._ask("report")
        self.sent = found.sent
        fresh = [each for each in found.faults if (each.flow, each.sequence, each.what) not in self._known]
        self._known |= {(each.flow, each.sequence, each.what) for each in fresh}
        return sorted(fresh, key=lambda each: each.time)

    def _ask(self, command: str) -> Seen:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the traffic generator ended with {self._process.wait()}"
        told: dict[str, Any] = json.loads(line)
        return Seen(told["sent"], tuple(Fault(**each) for each in told["faults"]))


@contextmanager
def traffic(flows: Sequence[Flow]) -> Iterator[Traffic]:
    """Makes the flows, returns when each has got a packet through that is to get through."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.generator"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        made = Traffic(process)
        made._ask(json.dumps([asdict(flow) for flow in flows]))
        yield made
    finally:
        process.kill()
        process.wait()


def show(faults: Sequence[Fault], most: int = 40) -> str:
    """Faults for people: the first of them by name, runs of one flow in one line."""
    lines: list[str] = []
    run: list[Fault] = []

    def close() -> None:
        if run:
            first, last = run[0], run[-1]
            more = f" … #{last.sequence} at {last.time:.3f} ({len(run)} in all)" if len(run) > 1 else ""
            lines.append(f"{first}{more}")

    for each in sorted(faults, key=lambda fault: (fault.flow, fault.what, fault.sequence)):
        following = run and (each.flow, each.what, each.sequence) == (
            run[-1].flow,
            run[-1].what,
            run[-1].sequence + 1,
        )
        if not following:
            close()
            run = []
        run.append(each)
    close()
    return "\n".join([*lines[:most], *([f"… {len(lines) - most} more"] if len(lines) > most else [])])
