"""The verifier's logs of programs that it refused, kept in the node's state directory: they are long, and
whoever reports the problem needs all of it.
"""

from __future__ import annotations

import os
import time

_DIRECTORY = "verifier-logs"
_KEPT = 8
_MOST_BYTES = 1 << 20


def keep_log(state_dir: str, program: str, log: str) -> str:
    """Writes a log, for root only, and forgets the oldest; returns its path, "" where it cannot be kept."""
    if not state_dir:
        return ""
    directory = os.path.join(state_dir, _DIRECTORY)
    name = f"{time.time_ns():020d}-{program}.log"
    path = os.path.join(directory, name)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            # The reason is at the end.
            file.write(log[-_MOST_BYTES:])
        for old in sorted(os.listdir(directory))[:-_KEPT]:
            os.unlink(os.path.join(directory, old))
    except OSError:
        return ""
    return path
