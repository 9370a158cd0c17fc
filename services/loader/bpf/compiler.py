"""clang, with a cache whose names are made of everything that the result depends on."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from services.loader.bpf.errors import CompileError, CompilerMissing

COMPILERS = ("clang-19", "clang")
FLAGS = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror", "-Wshadow")


@dataclass(frozen=True, slots=True)
class Compiled:
    """An object file. ``seconds`` is what clang took, 0 for one from the cache."""

    source: str
    path: str
    cache_hit: bool
    seconds: float


def find_compiler() -> str:
    """The path of clang. Raises CompilerMissing."""
    for name in COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    raise CompilerMissing(COMPILERS)


@lru_cache(maxsize=8)
def _version(compiler: str, _mtime_ns: int) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


def compile_sources(
    source_dir: str, names: Sequence[str], cache_dir: str, flags: Sequence[str] = ()
) -> list[Compiled]:
    """Compiles ``names`` in ``source_dir``; what the cache has is not compiled again.

    ``flags`` are added to :data:`FLAGS`. The cache is keyed by every ``.c`` and ``.h`` under the directory
    (those of ``tests`` only count for themselves), the flags and the compiler's version; entries are complete
    or not there, so several processes may share it. Raises CompilerMissing or CompileError.
    """
    compiler = find_compiler()
    with_tests = any(name.startswith("tests/") for name in names)
    digest = _digest(source_dir, compiler, flags, with_tests)
    os.makedirs(cache_dir, mode=0o700, exist_ok=True)
    with ThreadPoolExecutor(len(names)) as pool:
        return list(
            pool.map(lambda name: _compile(compiler, source_dir, name, cache_dir, digest, flags), names)
        )


def _digest(source_dir: str, compiler: str, flags: Sequence[str], with_tests: bool) -> str:
    digest = hashlib.sha256()
    version = _version(compiler, os.stat(compiler).st_mtime_ns)
    digest.update("\0".join([version, *_flags(source_dir=""), *flags]).encode())
    for path in sorted(p for p in Path(source_dir).rglob("*.[ch]")):
        if path.relative_to(source_dir).parts[0] == "tests" and not with_tests:
            continue
        data = path.read_bytes()
        digest.update(f"\0{path.relative_to(source_dir)}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def _flags(source_dir: str) -> list[str]:
    # The kernel's headers want asm/types.h, which Debian keeps per architecture.
    multiarch = sysconfig.get_config_var("MULTIARCH")
    system = [f"-I/usr/include/{multiarch}"] if multiarch else []
    return [*FLAGS, *system, f"-I{source_dir}"]


def _compile(
    compiler: str, source_dir: str, name: str, cache_dir: str, digest: str, flags: Sequence[str]
) -> Compiled:
    target = os.path.join(cache_dir, f"{Path(name).stem}-{digest[:32]}.o")
    if os.path.exists(target):
        return Compiled(name, target, True, 0.0)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".compile-") as scratch:
        output = os.path.join(scratch, "object.o")
        # Paths in debug information are relative, so that equal sources give equal objects.
        command = [compiler, *_flags("."), *flags, "-fdebug-compilation-dir=.", "-c", name, "-o", output]
        done = subprocess.run(command, cwd=source_dir, capture_output=True, text=True)
        if done.returncode:
            raise CompileError(os.path.join(source_dir, name), done.stderr)
        os.rename(output, target)
    return Compiled(name, target, False, time.perf_counter() - started)
