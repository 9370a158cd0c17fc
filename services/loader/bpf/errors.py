"""What can go wrong between the loader and the kernel."""

from __future__ import annotations

import errno
import os


class BpfError(Exception):
    """The kernel or libbpf refused an operation.

    ``errno`` is positive; ``op`` names the call and its object; ``detail`` is what libbpf said, or "".
    """

    def __init__(self, number: int, op: str, detail: str = "") -> None:
        name = errno.errorcode.get(number, str(number))
        text = f"{op}: {os.strerror(number)} ({name})"
        super().__init__(f"{text}: {detail}" if detail else text)
        self.errno = number
        self.op = op
        self.detail = detail


class VerifierError(BpfError):
    """The verifier rejected a program.

    ``detail`` is the last line that says why, ``log`` everything it said.
    """

    def __init__(self, number: int, program: str, log: str) -> None:
        super().__init__(number, f"load program {program}", _last_useful_line(log))
        self.program = program
        self.log = log


class DatapathUnavailable(Exception):
    """The machine lacks what the datapath needs; the message ends with what to do about it."""


class CompilerMissing(DatapathUnavailable):
    """There is no clang."""

    def __init__(self, tried: tuple[str, ...]) -> None:
        super().__init__(
            f"no BPF compiler: none of {', '.join(tried)} is in PATH; "
            "install clang-19 (Debian: apt-get install clang-19)"
        )
        self.tried = tried


class CompileError(DatapathUnavailable):
    """clang rejected the source. ``output`` is all it said."""

    def __init__(self, source: str, output: str) -> None:
        lines = output.splitlines()
        reason = next((line for line in lines if " error: " in line), lines[0] if lines else "no message")
        super().__init__(f"{source} does not compile: {reason}")
        self.source = source
        self.output = output


class BpffsMissing(DatapathUnavailable):
    """The pin directory is not on a BPF file system."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is not on a BPF file system; mount one: mount -t bpf bpf /sys/fs/bpf")
        self.path = path


class PrivilegeMissing(DatapathUnavailable):
    """The process may not use BPF."""

    def __init__(self, op: str) -> None:
        super().__init__(f"{op}: not permitted; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
        self.op = op


class MapMismatch(Exception):
    """A pinned map is not what the programs expect. ``pinned`` and ``expected`` are definitions in words."""

    def __init__(self, name: str, path: str, pinned: str, expected: str) -> None:
        super().__init__(
            f"pinned map {name} ({path}) is {pinned}, but the programs need {expected}; stop the loader, "
            "remove the pin (connections and policy of this node are then built anew) and start it again"
        )
        self.name = name
        self.path = path
        self.pinned = pinned
        self.expected = expected


def _last_useful_line(log: str) -> str:
    """The verifier's complaint is the last line before its statistics."""
    skipped = ("processed ", "max_states", "peak_states", "-- END", "verification time", "stack depth")
    lines = [line.strip() for line in log.splitlines()]
    useful = [line for line in lines if line and not line.startswith(skipped)]
    return useful[-1] if useful else "no log"
