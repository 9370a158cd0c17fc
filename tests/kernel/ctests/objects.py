"""From bpf/tests/*.c to objects, and to the tests that are in them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.loader.bpf.compiler import FLAGS, find_compiler
from services.loader.bpf.native import check_pointer, ffi, lib

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = REPOSITORY / "bpf"
TESTS = SOURCES / "tests"
CACHE = REPOSITORY / "build" / "bpf-tests"
LAUNCHER = "tests/lib/launcher.c"

# Asked for once: the first call is not for several threads.
_MULTIARCH = sysconfig.get_config_var("MULTIARCH")
_SYSTEM = (f"-I/usr/include/{_MULTIARCH}",) if _MULTIARCH else ()

# What SETUP, PKTGEN and CHECK of bpf/tests/lib/test.h name their programs.
_PART = re.compile(r"(?P<test>\w+)__(?P<family>v[46])__(?P<part>setup|pktgen|check)(?:_(?P<step>\d+))?")


class CompilationFailed(Exception):
    """clang refused a source; the message is what it said."""


@dataclass(frozen=True, slots=True)
class CTest:
    """A test in an object: the names of its programs, those of its packets in their order.

    ``checks`` has None for a packet that is not looked at.
    """

    source: str
    name: str
    family: str
    setup: str | None
    pktgens: tuple[str, ...]
    checks: tuple[str | None, ...]

    def __str__(self) -> str:
        return f"{Path(self.source).stem}-{self.name}-{self.family}"


@dataclass(frozen=True, slots=True)
class Broken:
    """A test file whose tests cannot be had, and why."""

    source: str
    message: str

    def __str__(self) -> str:
        return Path(self.source).stem


def sources() -> list[str]:
    """The test files, relative to bpf/."""
    return sorted(str(path.relative_to(SOURCES)) for path in TESTS.glob("*.c"))


def compile_source(name: str) -> Path:
    """Compiles a source with the datapath's flags and FIMBRIA_TEST, or finds the object in build/.

    ``name`` is relative to bpf/, or a path of its own.
    Any number of processes may do so at once. Raises CompilationFailed or CompilerMissing.
    """
    compiler = find_compiler()
    flags = [*FLAGS, *_SYSTEM, "-I.", "-DFIMBRIA_TEST"]
    target = CACHE / f"{Path(name).stem}-{_digest([compiler, *flags], name)}.o"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".compile-") as scratch:
        output = os.path.join(scratch, "object.o")
        command = [compiler, *flags, "-fdebug-compilation-dir=.", "-c", name, "-o", output]
        done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True)
        if done.returncode:
            raise CompilationFailed(f"bpf/{name} does not compile:\n{done.stderr}")
        os.rename(output, target)
    return target


def _digest(command: Sequence[str], name: str) -> str:
    """Of all that the object depends on: itself, and what it may include. Other tests it does not."""
    digest = hashlib.sha256("\0".join(command).encode())
    for path in [SOURCES / name, *sorted(SOURCES.rglob("*.h"))]:
        digest.update(f"\0{path}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def program_names(path: Path) -> list[str]:
    """The programs in an object, in the order of its source."""
    handle = check_pointer(lib.bpf_object__open_file(str(path).encode(), ffi.NULL), f"open {path}")
    try:
        found = []
        program = lib.bpf_object__next_program(handle, ffi.NULL)
        while program != ffi.NULL:
            found.append(ffi.string(lib.bpf_program__name(program)).decode())
            program = lib.bpf_object__next_program(handle, program)
        return found
    finally:
        lib.bpf_object__close(handle)


def find_tests(source: str, programs: Sequence[str]) -> list[CTest]:
    """The tests that these programs make up. Raises ValueError for parts that do not fit together."""
    setups: dict[tuple[str, str], str] = {}
    packets: dict[tuple[str, str], dict[int, str]] = {}
    checks: dict[tuple[str, str], dict[int, str]] = {}
    for program in programs:
        match = _PART.fullmatch(program)
        if match is None:
            raise ValueError(f"{source}: program {program} is not made by SETUP, PKTGEN or CHECK")
        key = match["test"], match["family"]
        if match["part"] == "setup":
            setups[key] = program
        else:
            kind = packets if match["part"] == "pktgen" else checks
            kind.setdefault(key, {})[int(match["step"])] = program
    for key, steps in checks.items():
        missing = steps.keys() - packets.get(key, {}).keys()
        if missing:
            raise ValueError(f"{source}: {'-'.join(key)} has CHECK {min(missing)} without its PKTGEN")
    tests = []
    for key, steps in packets.items():
        numbers = sorted(steps)
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(f"{source}: {'-'.join(key)} has packets {numbers}, not 1 to {len(numbers)}")
        tests.append(
            CTest(
                source, *key, setups.get(key),
                tuple(steps[number] for number in numbers),
                tuple(checks.get(key, {}).get(number) for number in numbers),
            )
        )  # fmt: skip
    return tests
