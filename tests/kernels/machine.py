"""A machine in qemu that runs one command under a kernel of Debian's, with the host's files and none of its
devices: what the command writes stays in the machine, but for its report.

No hardware virtualization is asked for, so that it runs anywhere, some ten times slower.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.packages import Image

REPORT = "/run/report"
_INIT = Path(__file__).with_name("init.sh")
_MEMORY_MB = 1792
# Two machines with a processor each do more than one with two.
_CPUS = os.environ.get("FIMBRIA_TEST_CPUS") or "1"
_CONSOLE_END = 4000
_EXECUTABLE, _PLAIN, _DIRECTORY = 0o100755, 0o100644, 0o040755


@dataclass(frozen=True)
class Outcome:
    """What became of a command: its exit status (None: the machine did not get that far), the machine's
    console with all that the command printed, and the files that it left in ``REPORT``."""

    status: int | None
    console: str
    files: dict[str, str]


def run(
    image: Image, command: Sequence[str], *, directory: str, seconds: float = 600, console: Path | None = None
) -> Outcome:
    """Boots, runs the command as root in the directory, powers off. ``console`` is written as it goes.

    Raises RuntimeError, with the end of the console, for a machine that does not end in time.
    """
    with tempfile.TemporaryDirectory(prefix="fimbria-kernel-") as scratch:
        initramfs, report = Path(scratch) / "initramfs", Path(scratch) / "report"
        initramfs.write_bytes(_archive(_initramfs(image)))
        report.mkdir()
        script = f"cd {shlex.quote(directory)} && exec {shlex.join(command)}\n"
        (report / "command").write_text(script)
        said = console or Path(scratch) / "console"
        with said.open("wb") as output:
            try:
                done = subprocess.run(
                    _qemu(image, initramfs, report), stdout=output, stderr=subprocess.PIPE,
                    stdin=subprocess.DEVNULL, timeout=seconds, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                end = _text(said)[-_CONSOLE_END:]
                raise RuntimeError(f"the machine did not end within {seconds:.0f} s:\n{end}") from None
        if done.returncode:
            raise RuntimeError(f"qemu: exit {done.returncode}: {done.stderr.decode().strip()}")
        told = _text(said)
        files = {path.name: path.read_text() for path in report.iterdir()}
    del files["command"]
    status = files.pop("status", None)
    return Outcome(int(status) if status else None, told, files)


def _text(path: Path) -> str:
    return path.read_text(errors="replace").replace("\r\n", "\n")


def _qemu(image: Image, initramfs: Path, report: Path) -> list[str]:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise RuntimeError("qemu-system-x86_64 is missing; `scripts/setup --kernels` installs it")
    return [
        program, "-accel", "tcg", "-cpu", "max", "-smp", _CPUS, "-m", str(_MEMORY_MB),
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", str(image.vmlinuz), "-initrd", str(initramfs),
        "-append", "console=ttyS0 quiet panic=-1 rdinit=/init",
        "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
        "-virtfs", f"local,path={report},mount_tag=report,security_model=none",
    ]  # fmt: skip


def _initramfs(image: Image) -> Iterator[tuple[str, int, bytes]]:
    """(name, mode, content) of everything in it: an init, busybox, the kernel's modules."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("busybox is missing; `scripts/setup --kernels` installs busybox-static")
    yield "bin", _DIRECTORY, b""
    yield "bin/busybox", _EXECUTABLE, Path(busybox).read_bytes()
    yield "init", _EXECUTABLE, _INIT.read_bytes()
    yield "lib", _DIRECTORY, b""
    for path in sorted((image.modules / "lib").rglob("*")):
        name = str(path.relative_to(image.modules))
        if path.is_dir():
            yield name, _DIRECTORY, b""
        else:
            yield name, _PLAIN, path.read_bytes()


def _archive(entries: Iterator[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    parts: list[bytes] = []
    for number, (name, mode, content) in enumerate((*entries, ("TRAILER!!!", 0, b"")), 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
        parts += [head, b"\0" * (-len(head) % 4), content, b"\0" * (-len(content) % 4)]
    return b"".join(parts)
