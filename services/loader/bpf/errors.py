"""What can go wrong between the loader and the kernel."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

# "<file>:<line>:<column>: error: <text>", or "fatal error".
_DIAGNOSTIC = re.compile(
    r"^(?P<file>[^:\n]+):(?P<line>\d+):(?P<column>\d+): (?:fatal )?error: (?P<text>.*)$", re.M
)


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

    ``detail`` is the last line that says why, ``log`` everything it said; ``log_path`` is the file that keeps
    it, "" if none does.
    """

    def __init__(self, number: int, program: str, log: str) -> None:
        super().__init__(number, f"load program {program}", _last_useful_line(log))
        self.program = program
        self.log = log
        self.log_path = ""


class DatapathUnavailable(Exception):
    """The machine lacks what the datapath needs; the message ends with what to do about it."""


class CompilerMissing(DatapathUnavailable):
    """There is no clang, and no object that some other node or the package has made of these sources."""

    def __init__(self, tried: tuple[str, ...], source: str = "", prebuilt_dir: str = "") -> None:
        where = f", and {prebuilt_dir} has no prebuilt object of {source}" if prebuilt_dir else ""
        super().__init__(
            f"no BPF compiler: none of {', '.join(tried)} is in PATH{where}; "
            "install clang-19 (Debian: apt-get install clang-19), or have FIMBRIA_PREBUILT_DIR name a "
            "directory of objects that were prebuilt from these sources (`make build` makes build/objects)"
        )
        self.tried = tried


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One error of the compiler: what, and where by file (as the compiler names it), line and column."""

    file: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: error: {self.text}"


class CompileError(DatapathUnavailable):
    """clang rejected the source. ``output`` is all it said, ``diagnostics`` its errors in order."""

    def __init__(self, source: str, output: str) -> None:
        self.diagnostics = tuple(
            Diagnostic(
                os.path.normpath(match["file"]), int(match["line"]), int(match["column"]), match["text"]
            )
            for match in _DIAGNOSTIC.finditer(output)
        )
        lines = output.splitlines()
        if self.diagnostics:
            more = len(self.diagnostics) - 1
            reason = f"{self.diagnostics[0]}{f' (and {more} more)' if more else ''}"
        else:
            # No place in a file: clang itself failed.
            reason = next((line for line in lines if "error:" in line), lines[0] if lines else "no message")
        super().__init__(f"{source} does not compile: {reason}")
        self.source = source
        self.output = output

    @property
    def metadata(self) -> dict[str, str]:
        """The first error for a client's ErrorInfo: file, line, column and text where they are known."""
        if not self.diagnostics:
            return {"file": self.source}
        first = self.diagnostics[0]
        return {
            "file": first.file,
            "line": str(first.line),
            "column": str(first.column),
            "text": first.text,
        }


class PrebuiltDamaged(DatapathUnavailable):
    """An object that came with the package is not what its manifest says; it is not loaded."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(
            f"prebuilt {path} is refused: {problem}; install the package anew (in a checkout: `make build`), "
            "or set FIMBRIA_PREBUILT_DIR to another directory or to nothing"
        )
        self.path = path


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


class UnknownVariable(DatapathUnavailable):
    """The configuration gives a constant that no object declares, or lacks one that an object does."""

    def __init__(self, name: str, known: Iterable[str], *, source: str = "") -> None:
        self.name = name
        self.known = tuple(sorted(known))
        if source:
            text = f"{source} declares the constant {name}, which the configuration does not give"
        else:
            text = f"the programs declare no constant {name}"
        super().__init__(f"{text}; known: {', '.join(self.known)}; programs and loader are of two versions")


class UnknownMap(DatapathUnavailable):
    """A size is given for a map that no object declares."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(f"FIMBRIA_MAP_SIZES names map {name}; the maps are {', '.join(self.known)}")


class FixedSize(DatapathUnavailable):
    """A size is given for a map whose size is part of the programs."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"map {name} is an array, whose size the programs count on; give it none")


class MapMismatch(Exception):
    """What a pinned map holds cannot be carried over into the one that the programs need.

    ``pinned`` and ``expected`` are both in words; ``field`` is the member that is to blame, or "".
    """

    def __init__(self, name: str, path: str, pinned: str, expected: str, field: str = "") -> None:
        what = f"{field} of pinned map {name} ({path})" if field else f"pinned map {name} ({path})"
        super().__init__(
            f"{what} is {pinned}, but the programs need {expected}, and nothing leads there; go back to "
            "the version that made it, or stop the loader, remove the pin (connections are lost, the rest is "
            "made anew) and start it again"
        )
        self.name = name
        self.path = path
        self.pinned = pinned
        self.expected = expected
        self.field = field


class MapFull(MapMismatch):
    """A map holds more than would fit into one of the size that is asked for."""

    def __init__(self, name: str, entries: int, max_entries: int) -> None:
        super().__init__(name, "", f"{entries} entries", f"max_entries {max_entries}")
        self.args = (
            f"map {name} holds {entries} entries, which do not fit into max_entries {max_entries}; "
            "give it a larger size",
        )
        self.entries = entries
        self.max_entries = max_entries


def _last_useful_line(log: str) -> str:
    """The verifier's complaint is the last line before its statistics."""
    skipped = ("processed ", "max_states", "peak_states", "-- END", "verification time", "stack depth")
    lines = [line.strip() for line in log.splitlines()]
    useful = [line for line in lines if line and not line.startswith(skipped)]
    return useful[-1] if useful else "no log"
