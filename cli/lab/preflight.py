"""What a lab needs of the machine, checked before anything is made."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from cli.errors import CliError
from cli.lab.paths import BPFFS, REPOSITORY

CNI_PLUGIN = REPOSITORY / "build" / "fimbria-cni"
COMPILERS = ("clang-19", "clang")
# Bit numbers of linux/capability.h. CAP_BPF and CAP_PERFMON are parts of CAP_SYS_ADMIN.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21, "CAP_SYS_PTRACE": 19}


def check() -> None:
    """Raise CliError, with what to do about it, when a lab cannot run here; mount bpffs if it is missing."""
    _privileges()
    if shutil.which("ip") is None:
        raise CliError(
            "the `ip` command is missing",
            reason="IPROUTE2_MISSING",
            hint="install iproute2: apt-get install iproute2",
        )
    if not any(shutil.which(compiler) for compiler in COMPILERS):
        raise CliError(
            f"no C compiler for BPF: none of {', '.join(COMPILERS)} is in PATH",
            reason="COMPILER_MISSING",
            hint="install clang: apt-get install clang-19",
        )
    if not os.access(CNI_PLUGIN, os.X_OK):
        raise CliError(
            f"the CNI plugin {CNI_PLUGIN} is not built", reason="CNI_PLUGIN_MISSING", hint="run `make build`"
        )
    ensure_bpffs()


def _privileges() -> None:
    held = effective_capabilities()
    missing = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if not missing:
        return
    if os.geteuid() != 0:
        raise CliError("a lab needs root", reason="NOT_ROOT", hint="try again with sudo")
    raise CliError(
        f"root lacks {', '.join(missing)}",
        reason="CAPABILITY_MISSING",
        hint="in a container, run it privileged",
    )


def effective_capabilities() -> int:
    """The caller's effective capabilities as a bit mask."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def bpffs_mounted(path: Path = BPFFS, mounts: str = "/proc/self/mounts") -> bool:
    """True when a BPF file system is mounted on `path`."""
    with open(mounts) as file:
        return any(line.split()[1:3] == [str(path), "bpf"] for line in file)


def ensure_bpffs() -> None:
    """Mount the BPF file system if it is missing: once, however many ask at the same time, for a second mount
    would hide the pins of the first. Raises CliError (BPFFS_MISSING) when that fails.
    """
    if bpffs_mounted():
        return
    below = os.open(BPFFS.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(below, fcntl.LOCK_EX)
        if not bpffs_mounted():
            _mount_bpffs()
    finally:
        os.close(below)


def _mount_bpffs() -> None:
    done = subprocess.run(
        ["mount", "-t", "bpf", "bpf", str(BPFFS)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CliError(
            f"no BPF file system is mounted on {BPFFS}, and mounting it failed: {done.stderr.strip()}",
            reason="BPFFS_MISSING",
            hint=f"mount -t bpf bpf {BPFFS}",
        )
    print(f"mounted the BPF file system on {BPFFS}; it stays mounted", file=sys.stderr)
