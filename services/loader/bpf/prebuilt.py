"""Objects that come with the package, so that a node needs no compiler.

``build`` writes them: ``DIR/manifest.json``, and beside it an object per program and feature set, named by
its content. The manifest is replaced last and as a whole, so that who reads it meanwhile finds the objects
that it names. They are looked up by sources and flags; the compiler that made them is only told of.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from services.loader.bpf.errors import DatapathUnavailable, PrebuiltDamaged
from services.loader.bpf.features import COMMON_FEATURE_SETS
from services.loader.bpf.object_cache import sha256_of

MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1


def find(directory: str, sources: str, name: str) -> str | None:
    """The object of a program made of these sources and flags (``source_digest``), or None.

    Raises PrebuiltDamaged for a manifest that cannot be read and an object that is not what it says.
    """
    path = os.path.join(directory, MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        builds = [build for build in manifest["builds"] if build["sources"] == sources]
        objects = {name: (entry["file"], entry["sha256"]) for build in builds for name, entry in
                   build["objects"].items()}  # fmt: skip
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise PrebuiltDamaged(path, f"it cannot be read: {problem or type(problem).__name__}") from problem
    if name not in objects:
        return None
    file_name, expected = objects[name]
    found = os.path.join(directory, os.path.basename(file_name))
    try:
        digest = sha256_of(found)
    except OSError as problem:
        raise PrebuiltDamaged(found, f"it cannot be read: {problem.strerror}") from problem
    if digest != expected:
        raise PrebuiltDamaged(found, f"its sha256 is {digest}, {path} says {expected}")
    return found


def build(source_dir: str, names: Sequence[str], directory: str) -> None:
    """Compiles the common feature sets into ``directory``, replacing what it had.

    Raises CompileError or CompilerMissing; then what was there still is.
    """
    from services.loader.bpf import compiler

    clang = compiler.find_compiler()
    os.makedirs(directory, exist_ok=True)
    builds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as scratch:
        for feature_set in COMMON_FEATURE_SETS:
            objects = {}
            for name in names:
                output = os.path.join(scratch, "object.o")
                compiler.run_compiler(clang, source_dir, name, output, feature_set.flags)
                digest = sha256_of(output)
                file_name = f"{Path(name).stem}-{feature_set.name}-{digest[:16]}.o"
                objects[name] = {"file": file_name, "sha256": digest, "bytes": os.path.getsize(output)}
                os.chmod(output, 0o644)
                os.rename(output, os.path.join(directory, file_name))
            builds.append(
                {
                    "feature_set": feature_set.name,
                    "flags": [*compiler.FLAGS, *feature_set.flags],
                    "sources": compiler.source_digest(source_dir, feature_set.flags),
                    "objects": objects,
                }
            )
        manifest = {
            "format": _FORMAT,
            "compiler": compiler.compiler_version(clang).splitlines()[0],
            "builds": builds,
        }
        written = os.path.join(scratch, MANIFEST)
        Path(written).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        os.rename(written, os.path.join(directory, MANIFEST))
    kept = {MANIFEST, *(entry["file"] for each in builds for entry in each["objects"].values())}
    for path in Path(directory).iterdir():
        if path.name not in kept and path.suffix == ".o":
            path.unlink(missing_ok=True)
        elif path.name.startswith(".build-"):
            shutil.rmtree(path, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles the datapath's common feature sets for a package."""
    from services.loader.bpf.datapath import SOURCES

    parser = argparse.ArgumentParser(prog="python -m services.loader.bpf.prebuilt", description=main.__doc__)
    parser.add_argument("source_dir", help="directory of the sources")
    parser.add_argument("directory", help="directory that the objects and the manifest go to")
    options = parser.parse_args(arguments)
    try:
        build(options.source_dir, SOURCES, options.directory)
    except DatapathUnavailable as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
