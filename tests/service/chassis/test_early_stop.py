"""A process that is told to stop before it serves drains as if it had served."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os
import signal
from contextlib import asynccontextmanager

from services.chassis.service import run_service
from services.chassis.settings import CommonSettings


@asynccontextmanager
async def build(context):
    os.kill(os.getpid(), signal.SIGTERM)
    yield
    context.log.info("left")


run_service(CommonSettings, build, service="thing")
"""


def test_sigterm_during_the_start_is_a_graceful_stop() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 0, ended.stderr
    assert "left" in ended.stderr + ended.stdout
