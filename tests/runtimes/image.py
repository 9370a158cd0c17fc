"""The tests' container image, made here: no registry is asked for anything.

One static program in an archive as ``docker save`` writes them, which Podman and containerd both load.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

SOURCE = Path(__file__).with_name("container.c")
NAME = "fimbria.test/container:1"
PROGRAM = "/container"


def build(directory: Path) -> Path:
    """Makes the archive in ``directory`` and returns its path."""
    program = directory / "container"
    compiler = shutil.which("clang-19") or "clang"
    subprocess.run(
        [compiler, "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True
    )
    layer = _tar({"container": program.read_bytes(), "etc/passwd": b"root:x:0:0::/:/container\n"})
    config = json.dumps(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": {"Entrypoint": [PROGRAM]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    manifest = [{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    archive = directory / "image.tar"
    archive.write_bytes(
        _tar({"layer.tar": layer, "config.json": config, "manifest.json": json.dumps(manifest).encode()})
    )
    return archive


def _tar(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _architecture() -> str:
    machine = subprocess.run(["uname", "-m"], check=True, capture_output=True, text=True).stdout.strip()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
