"""The demo keeps its promises and leaves nothing, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab import netns, sweep
from cli.lab.paths import LabPaths

pytestmark = pytest.mark.cluster


@pytest.fixture
def place() -> Iterator[Path]:
    """A short temporary directory: the demo puts unix sockets several levels below it."""
    made = Path(tempfile.mkdtemp(prefix="fd"))
    yield made
    for lab in made.glob("*/*/lab"):
        sweep.remove(LabPaths.of(lab))
    shutil.rmtree(made, ignore_errors=True)


def start(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli.demo"],
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lab_of(demo: subprocess.Popen[str], place: Path) -> LabPaths:
    """The demo's lab, once it has pods."""
    deadline = time.monotonic() + 30
    while True:
        for directory in place.glob(f"*/{demo.pid}-*/lab"):
            paths = LabPaths.of(directory)
            if any("_" in name for name in netns.named(paths.netns_prefix)):
                return paths
        assert time.monotonic() < deadline and demo.poll() is None, "the demo made no pod"
        time.sleep(0.02)


def test_the_demo_keeps_its_promises_and_leaves_nothing(place: Path) -> None:
    demo = start(place)
    told, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0, told
    assert "All of it as promised" in told
    assert all(f"{number}/5" in told for number in range(1, 6))
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_an_interrupted_demo_removes_its_lab(place: Path, number: signal.Signals, code: int) -> None:
    demo = start(place)
    paths = lab_of(demo, place)
    demo.send_signal(number)
    told, _ = demo.communicate(timeout=30)
    assert demo.returncode == code, told
    assert sweep.leftovers(paths) == []
    assert list(place.iterdir()) == []


def test_the_next_demo_removes_what_a_killed_one_left(place: Path) -> None:
    killed = start(place)
    paths = lab_of(killed, place)
    killed.kill()
    killed.communicate()
    assert sweep.leftovers(paths) != []
    demo = start(place)
    told, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0, told
    assert "removing what an interrupted demo left" in told
    assert sweep.leftovers(paths) == []
    assert list(place.iterdir()) == []
