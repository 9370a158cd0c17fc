"""The reader: wakeups, what comes without one, floods, and tracing while somebody asks for it."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

import pytest

from services.loader.flows.flow import Flow, Lost
from services.loader.flows.log import FlowLog
from services.loader.flows.reader import FlowReader
from services.loader.interfaces import EventSource, PacketReport
from tests.unit.loader.fakes import FakeKernel
from tests.unit.loader.test_flows import DROP, Names
from tests.unit.loader.waiting import until


class Ring:
    """A ring buffer: :meth:`put` wakes the reader only if it is told to."""

    def __init__(self) -> None:
        self.waiting: deque[PacketReport] = deque()
        self.turns: list[int] = []
        self.tracing = False
        self.closed = False
        self.fail = False
        self.callback: Callable[[PacketReport], None] = lambda report: None
        self._reading, self._writing = os.pipe()

    def put(self, *reports: PacketReport, wake: bool = True) -> None:
        self.waiting.extend(reports)
        if wake:
            os.write(self._writing, b".")

    def fileno(self) -> int:
        return self._reading

    def consume(self, limit: int) -> int:
        if self.fail:
            self.fail = False
            raise LookupError("not this one")
        taken = min(limit, len(self.waiting))
        for _ in range(taken):
            self.callback(self.waiting.popleft())
        if taken:
            self.turns.append(taken)
        return taken

    def trace(self, wanted: bool) -> None:
        self.tracing = wanted

    def close(self) -> None:
        self.closed = True
        os.close(self._reading)
        os.close(self._writing)


class Kernel(FakeKernel):
    """A kernel with a ring buffer."""

    def __init__(self, ring: Ring) -> None:
        super().__init__()
        self.ring = ring
        self.lost = 0

    def open_events(self, callback: Callable[[PacketReport], None]) -> EventSource:
        self.ring.callback = callback
        return self.ring

    def lost_events(self) -> int:
        return self.lost


@pytest.fixture
def ring() -> Ring:
    return Ring()


@pytest.fixture
def log() -> FlowLog:
    return FlowLog(Names(), capacity=10_000, offset=lambda: 0)


@pytest.fixture
async def reader(ring: Ring, log: FlowLog) -> FlowReader:
    return FlowReader(Kernel(ring), log)


@pytest.mark.parametrize("wake", [True, False])
async def test_reports_are_taken_woken_or_not(
    ring: Ring, log: FlowLog, reader: FlowReader, wake: bool
) -> None:
    ring.put(DROP, DROP, wake=wake)
    await until(lambda: len(log.recent()) == 2)
    ring.put(DROP, wake=wake)
    await until(lambda: len(log.recent()) == 3)
    reader.close()
    assert ring.closed


async def test_a_flood_is_taken_in_short_turns_and_leaves_the_loop_to_others(
    ring: Ring, log: FlowLog, reader: FlowReader
) -> None:
    ring.put(*[DROP] * 2000)
    others = 0
    while len(log.recent()) < 2000:
        await asyncio.sleep(0)
        others += 1
    assert max(ring.turns) <= 128
    assert others > len(ring.turns)
    reader.close()


async def test_a_failure_is_passed_over(ring: Ring, log: FlowLog, reader: FlowReader) -> None:
    ring.fail = True
    ring.put(DROP)
    await until(lambda: len(log.recent()) == 1)
    reader.close()


async def test_lost_ones_are_told_with_their_count(
    ring: Ring, log: FlowLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.loader.flows.reader._LOST_CHECK_SECONDS", 0.0)
    kernel = Kernel(ring)
    kernel.lost = 5
    reader = FlowReader(kernel, log)
    ring.put(DROP)
    await until(lambda: len(log.recent()) == 1)
    kernel.lost = 12
    ring.put(DROP)
    await until(lambda: len(log.recent()) == 3)
    # What was lost before is not told.
    assert [item for item in log.recent() if isinstance(item, Lost)] == [Lost(7)]
    ring.put(DROP)
    await until(lambda: len(log.recent()) == 4)
    assert isinstance(log.recent()[-1], Flow)
    reader.close()


async def test_lost_ones_are_told_when_a_flood_is_over(
    ring: Ring, log: FlowLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.loader.flows.reader._LOST_CHECK_SECONDS", 0.2)
    kernel = Kernel(ring)
    reader = FlowReader(kernel, log)
    ring.put(DROP)
    kernel.lost = 7
    await until(lambda: len(log.recent()) == 2)
    assert log.recent()[-1] == Lost(7)
    reader.close()


async def test_tracing_is_on_for_as_long_as_somebody_asks(ring: Ring, reader: FlowReader) -> None:
    assert not ring.tracing
    with reader.tracing():
        with reader.tracing():
            assert ring.tracing
        assert ring.tracing
    assert not ring.tracing
    with reader.tracing():
        assert ring.tracing
        reader.close()
        ring.tracing = False
    assert not ring.tracing
