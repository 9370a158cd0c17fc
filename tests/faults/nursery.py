"""Makes service processes by fork, from a process that has imported what they need and uses no gRPC yet.

A test that uses gRPC cannot fork safely itself, and what starts in a tenth of the time can be killed
ten times as often. Run as ``python -m tests.faults.nursery SERVICE…``: each line of standard input is a JSON
list ``[service, log file, flags]``, each line of the answer the child's pid. When standard input ends, which
it does when the test ends in whatever way, all children are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from typing import Any

_PR_SET_PDEATHSIG = 1


def main() -> None:
    for service in sys.argv[1:]:
        importlib.import_module(f"services.{service}.__main__")
    importlib.import_module("services.chassis.postgres")
    gc.collect()
    gc.freeze()
    children: set[int] = set()
    for line in sys.stdin.buffer:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(*job)
        children = {each for each in children if os.waitpid(each, os.WNOHANG)[0] == 0} | {pid}
        print(pid, flush=True)
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _child(service: str, log: str, flags: list[str]) -> None:
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        signal.signal(signal.SIGUSR1, _tell_tasks)
        module = f"services.{service}"
        sys.argv = [module, *flags]
        del sys.modules[f"{module}.__main__"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _tell_tasks(*_: object) -> None:
    """Where every task of the process waits just now: what a failed test wants to know."""
    for task in asyncio.all_tasks():
        frames = [f"{each.f_code.co_filename}:{each.f_lineno}" for each in task.get_stack()]
        print(f"task {task.get_name()}: {' < '.join(reversed(frames))}", file=sys.stderr)
    sys.stderr.flush()


class Nursery:
    """The tests' side of it. Start it before gRPC is used, end it with :meth:`close`."""

    def __init__(self, *services: str) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FIMBRIA_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery", *services],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
        )

    def spawn(self, service: str, log: str, flags: list[str]) -> int:
        """The pid of a new process of the service."""
        assert self._process.stdin is not None and self._process.stdout is not None
        job: Any = [service, log, flags]
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


if __name__ == "__main__":
    main()
