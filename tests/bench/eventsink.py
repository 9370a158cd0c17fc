"""Somebody who reads the datapath's events meanwhile, as the loader does: woken by the kernel."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from services.loader.bpf.datapath import KernelDatapath

_PATIENCE_SECONDS = 10.0


class EventSink:
    """Counts events. Make it with :func:`event_sink`."""

    def __init__(self, datapath: KernelDatapath) -> None:
        self.received = 0
        self._stop = threading.Event()
        self._reader = datapath.events(lambda _event: self._count())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_for(self, count: int) -> None:
        """Waits until so many events in all were received. Raises TimeoutError: some were lost."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.received < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.received} events of {count} were received")
            time.sleep(0.001)

    def close(self) -> None:
        """Ends reading."""
        self._stop.set()
        self._thread.join()
        self._reader.close()

    def _count(self) -> None:
        self.received += 1

    def _read(self) -> None:
        with select.epoll() as poll:
            poll.register(self._reader.fileno(), select.EPOLLIN)
            while not self._stop.is_set():
                # The kernel does not wake for what comes soon after: look again by the clock.
                poll.poll(0.01)
                while self._reader.consume():
                    pass


@contextmanager
def event_sink(datapath: KernelDatapath) -> Iterator[EventSink]:
    """Reads until the end of the block."""
    sink = EventSink(datapath)
    try:
        yield sink
    finally:
        sink.close()
