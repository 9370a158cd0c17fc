"""Starts the lab's processes: imports what they all need once, then forks one child for each.

Importing gRPC, SQLAlchemy, OpenTelemetry and pyroute2 is most of what starting a service costs; six
processes that each do it take seconds on two cores. The imports make no thread and no channel (gRPC must
not be in use before a fork), and a child goes on exactly as `python -m MODULE` would.

Run as `python -m cli.lab.launcher MODULE…`, with the modules to import; standard input holds, as soon as the
network is there, one JSON list of processes: `[{name, module, environ, netns, log, record, lock, title}…]`.
`lock` is an inherited descriptor of the lab's lock.
The launcher ends when the children are forked; they belong to init from then on.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from cli.lab import netns
from cli.lab.files import write_json
from cli.lab.process import ProcessId

_PR_SET_NAME = 15


def main() -> None:
    """Import, read what to start, fork."""
    # The lab's files are its owner's alone.
    os.umask(0o077)
    for module in sys.argv[1:]:
        importlib.import_module(f"{module}.__main__")
    # Collections in the children would copy every page that the imports filled.
    gc.collect()
    gc.freeze()
    jobs = json.load(sys.stdin)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise SystemExit(f"the imports made {threads - 1} threads: a fork would lose them")
    for process in jobs:
        if os.fork() == 0:
            _child(process)


def _child(process: dict[str, Any]) -> None:
    code = 1
    try:
        os.setsid()
        log = os.open(process["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(log)
        os.close(nothing)
        # The child itself says who it is: it is on record before it does anything, whoever dies meanwhile.
        own = ProcessId.of(os.getpid())
        assert own is not None
        write_json(Path(process["record"]), {"pid": own.pid, "started": own.started})
        os.close(process["lock"])
        if process["netns"]:
            netns.enter_path(process["netns"])
        os.environ.update(process["environ"])
        _rename(process["title"])
        sys.argv = [process["module"]]
        # It was imported to import what it needs; now it runs.
        del sys.modules[f"{process['module']}.__main__"]
        runpy.run_module(process["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _rename(title: str) -> None:
    """Show `title` as the command line in ps, in the room that the launcher's own command line takes."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, stop = int(fields[45]), int(fields[46])
    room = stop - start
    if start == 0 or room <= 0:
        return
    ctypes.memmove(start, title.encode()[: room - 1].ljust(room, b"\0"), room)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, title.encode()[:15], 0, 0, 0)


if __name__ == "__main__":
    main()
