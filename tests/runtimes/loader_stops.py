"""The node's loader held, so that a call of the plugin is in the middle for as long as a test wants."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.runtimes.machine import Machine, wait_until

PLUGIN = "fimbria-cni"


@contextmanager
def held_loader(machine: Machine) -> Iterator[None]:
    """The loader does nothing within the block."""
    running = machine.node.loader.running
    assert running is not None
    os.kill(running.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(running.pid, signal.SIGCONT)


def plugin_under_way(machine: Machine) -> int:
    """Waits for a call of the plugin and returns its process."""
    wait_until(lambda: machine.processes(PLUGIN))
    return machine.processes(PLUGIN)[0]


def plugins_done(machine: Machine) -> None:
    """Waits until no call is under way."""
    wait_until(lambda: not machine.processes(PLUGIN))
