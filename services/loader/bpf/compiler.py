"""clang, with a cache whose names are made of everything that the result depends on.

Objects come from the first of: the cache, the objects prebuilt into the package, clang. What has to be
compiled is compiled once, however many threads and processes want it at that moment.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from services.loader.bpf import prebuilt
from services.loader.bpf.errors import CompileError, CompilerMissing, DatapathUnavailable
from services.loader.bpf.features import COMMON_FEATURE_SETS
from services.loader.bpf.object_cache import ObjectCache

COMPILERS = ("clang-19", "clang")
# The kernel's headers want asm/types.h, which Debian keeps per architecture. Asked for once, by one thread:
# of two that ask sysconfig at the same time one may be told that there is none (Python before 3.12).
_MULTIARCH: Final = sysconfig.get_config_var("MULTIARCH")
FLAGS = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror", "-Wshadow")
# `make build` writes them here; a package says where they are by FIMBRIA_PREBUILT_DIR.
PREBUILT_DIR: Final = str(Path(__file__).resolve().parents[3] / "build" / "objects")


@dataclass(frozen=True, slots=True)
class Compiled:
    """An object file. ``seconds`` is what clang took, 0 for one that was there; ``cache_hit``: nothing had to
    be compiled; ``prebuilt``: it came with the package.
    """

    source: str
    path: str
    cache_hit: bool
    seconds: float
    prebuilt: bool = False


def find_compiler() -> str:
    """The path of clang. Raises CompilerMissing."""
    for name in COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    raise CompilerMissing(COMPILERS)


def compile_sources(
    source_dir: str,
    names: Sequence[str],
    cache_dir: str,
    flags: Sequence[str] = (),
    *,
    prebuilt_dir: str = PREBUILT_DIR,
    fresh: bool = False,
) -> list[Compiled]:
    """Compiles ``names`` in ``source_dir``; what the cache or the package has is not compiled again.

    ``flags`` are added to :data:`FLAGS`. The cache is keyed by every ``.c`` and ``.h`` under the directory
    (those of ``tests`` only count for themselves), the flags and the compiler's version, the package's
    objects by all of these but the compiler. Without clang, an object that any compiler made from these
    sources and flags will do. ``fresh`` compiles in any case. ``prebuilt_dir`` "": there are none.

    Raises CompileError, CompilerMissing, or PrebuiltDamaged.
    """
    with_tests = any(name.startswith("tests/") for name in names)
    sources = source_digest(source_dir, flags, with_tests=with_tests)
    builder = _Builder(source_dir, ObjectCache(cache_dir), sources, tuple(flags), prebuilt_dir, fresh)
    with ThreadPoolExecutor(len(names)) as pool:
        compiled = list(pool.map(builder.build, names))
    if not all(each.cache_hit for each in compiled):
        builder.cache.prune()
    return compiled


@dataclass(frozen=True, slots=True)
class _Builder:
    source_dir: str
    cache: ObjectCache
    sources: str
    flags: tuple[str, ...]
    prebuilt_dir: str
    fresh: bool

    def build(self, name: str) -> Compiled:
        stem = f"{name.removesuffix('.c').replace('/', '_')}-{self.sources[:32]}"
        try:
            compiler = find_compiler()
        except CompilerMissing:
            return self._without_compiler(name, stem)
        key = f"{stem}-{_compiler_digest(compiler)[:8]}"
        if self.fresh:
            with self.cache.making(key):
                return self._compile(compiler, name, key)
        found = self._find(name, key)
        if found is None:
            with self.cache.making(key):
                # Whoever held the lock before made it, unless it failed.
                found = self._find(name, key) or self._compile(compiler, name, key)
        return found

    def _find(self, name: str, key: str) -> Compiled | None:
        path = self.cache.find(key)
        return Compiled(name, path, True, 0.0) if path else self._prebuilt(name)

    def _prebuilt(self, name: str) -> Compiled | None:
        if not self.prebuilt_dir:
            return None
        path = prebuilt.find(self.prebuilt_dir, self.sources, name)
        return Compiled(name, path, True, 0.0, prebuilt=True) if path else None

    def _without_compiler(self, name: str, stem: str) -> Compiled:
        if not self.fresh:
            path = self.cache.find_any(f"{stem}-")
            found = Compiled(name, path, True, 0.0) if path else self._prebuilt(name)
            if found is not None:
                return found
        raise CompilerMissing(COMPILERS, os.path.join(self.source_dir, name), self.prebuilt_dir)

    def _compile(self, compiler: str, name: str, key: str) -> Compiled:
        started = time.perf_counter()
        with self.cache.scratch() as scratch:
            output = os.path.join(scratch, "object.o")
            run_compiler(compiler, self.source_dir, name, output, self.flags)
            path = self.cache.store(key, output)
        return Compiled(name, path, False, time.perf_counter() - started)


def run_compiler(compiler: str, source_dir: str, name: str, output: str, flags: Sequence[str] = ()) -> None:
    """Compiles one source. Raises CompileError."""
    # Paths in debug information are relative, so that equal sources give equal objects.
    command = [compiler, *FLAGS, *_includes(), "-I.", *flags, "-fdebug-compilation-dir=.", "-c", name]
    done = subprocess.run(
        [*command, "-o", os.path.abspath(output)], cwd=source_dir, capture_output=True, text=True
    )
    if done.returncode:
        raise CompileError(os.path.join(source_dir, name), done.stderr)


def source_digest(source_dir: str, flags: Sequence[str] = (), *, with_tests: bool = False) -> str:
    """SHA-256 of what an object is made of, but for the compiler: sources, flags and byte order."""
    digest = hashlib.sha256("\0".join([sys.byteorder, *FLAGS, *flags]).encode())
    for path in sorted(Path(source_dir).rglob("*.[ch]")):
        if path.relative_to(source_dir).parts[0] == "tests" and not with_tests:
            continue
        data = path.read_bytes()
        digest.update(f"\0{path.relative_to(source_dir)}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def compiler_version(compiler: str) -> str:
    """What the compiler says of itself."""
    return _version(compiler, os.stat(compiler).st_mtime_ns)


@lru_cache(maxsize=8)
def _version(compiler: str, _mtime_ns: int) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


def _compiler_digest(compiler: str) -> str:
    return hashlib.sha256("\0".join([compiler_version(compiler), *_includes()]).encode()).hexdigest()


def _includes() -> list[str]:
    return [f"-I/usr/include/{_MULTIARCH}"] if _MULTIARCH else []


def main(arguments: Sequence[str] | None = None) -> int:
    """``--check DIR``: compiles the programs in a directory, every feature set, and keeps nothing."""
    parser = argparse.ArgumentParser(prog="python -m services.loader.bpf.compiler", description=main.__doc__)
    parser.add_argument("--check", metavar="DIR", required=True, help="directory of the sources")
    directory = parser.parse_args(arguments).check
    names = sorted(path.name for path in Path(directory).glob("bpf_*.c"))
    if not names:
        parser.error(f"--check {directory}: no bpf_*.c there")
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for feature_set in COMMON_FEATURE_SETS:
            for name in names:
                try:
                    output = os.path.join(scratch, "object.o")
                    run_compiler(find_compiler(), directory, name, output, feature_set.flags)
                except CompileError as problem:
                    failed += 1
                    print(problem.output, file=sys.stderr, end="")
                except DatapathUnavailable as problem:
                    parser.exit(1, f"{problem}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
