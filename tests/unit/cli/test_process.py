"""Knowing, finding and ending processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cli.lab import process
from cli.lab.files import write_json
from cli.lab.paths import MARK
from cli.lab.process import ProcessId

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; print(flush=True); time.sleep(60)"]


def started(**environ: str) -> subprocess.Popen[bytes]:
    """A process that runs for a minute and whose environment is in place."""
    child = subprocess.Popen(SLEEP, env={**os.environ, **environ}, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_a_process_is_alive_until_it_ends_even_as_a_zombie() -> None:
    child = started()
    found = ProcessId.of(child.pid)
    assert found is not None and found.alive
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not found.alive
    assert ProcessId.of(child.pid) is None
    child.wait()


def test_another_process_with_the_same_pid_is_another_process() -> None:
    own = ProcessId.of(os.getpid())
    assert own is not None
    assert not ProcessId(own.pid, own.started - 1).alive


def test_a_recorded_process_is_read_back(tmp_path: Path) -> None:
    assert ProcessId.recorded(tmp_path / "none.json") is None
    write_json(tmp_path / "record.json", {"pid": 7, "started": 9})
    assert ProcessId.recorded(tmp_path / "record.json") == ProcessId(7, 9)


def test_only_marked_processes_are_found_and_ended() -> None:
    mine = started(**{MARK: "abc123", f"{MARK}_POD": "shop/web"})
    other = started(**{MARK: "abc1234"})
    try:
        assert [item.pid for item in process.marked("abc123")] == [mine.pid]
        assert [item.pid for item in process.marked("abc123", pod="shop/web")] == [mine.pid]
        assert process.marked("abc123", pod="shop/db") == []
        process.end(process.marked("abc123"))
        assert mine.wait(5) != 0
        assert other.poll() is None
    finally:
        for child in (mine, other):
            child.kill()
            child.wait()


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    stubborn = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c",
         "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    found = ProcessId.of(stubborn.pid)
    assert found is not None
    process.end([found], grace=0.1)
    assert stubborn.wait(5) == -9
