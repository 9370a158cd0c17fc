"""Network namespaces by name, and work inside them.

A thread that enters another network namespace takes nobody along: the rest of the process, and the
file system with /sys and bpffs, stay as they are. A socket stays in the namespace it was made in.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from cli.errors import CliError
from cli.lab.paths import NETNS_DIRECTORY, netns_path

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def enter(descriptor: int) -> None:
    """Move the calling thread into the network namespace open at `descriptor`; OSError if that fails."""
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot enter the network namespace: {os.strerror(code)}")


def enter_path(path: str | os.PathLike[str]) -> None:
    """Move the calling thread into the network namespace that the file `path` names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(descriptor)
    finally:
        os.close(descriptor)


def run_in(path: str | os.PathLike[str], work: Callable[[], T]) -> T:
    """Do `work` in a thread of its own inside the namespace `path` and return what it returns."""
    result: list[T] = []
    failure: list[BaseException] = []

    def inside() -> None:
        try:
            enter_path(path)
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=inside, name="netns", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def ip(*arguments: str, netns: str = "", batch: Iterable[str] | None = None) -> str:
    """Run iproute2's `ip`, in the named namespace when one is given, and return what it prints.

    With `batch`, its lines are given to `ip -batch -`. Raises CliError with ip's own message.
    """
    command = ["ip", *(["-n", netns] if netns else []), *arguments]
    text = None
    if batch is not None:
        command += ["-batch", "-"]
        text = "\n".join(batch) + "\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        told = done.stderr.strip().replace("\n", "; ")
        raise CliError(f"`{' '.join(command)}` failed: {told}", reason="NETWORK_SETUP_FAILED")
    return done.stdout


def create(name: str) -> Path:
    """Make the namespace `name` with its loopback up; CliError when it exists."""
    ip("netns", "add", name)
    path = netns_path(name)
    run_in(path, _settle)
    ip("link", "set", "lo", "up", netns=name)
    return path


def _settle() -> None:
    # Some hosts default to bbr, which takes the pauses between namespaces for a slow path; reno is in every
    # kernel, and unlike cubic may be chosen in any namespace (tcp_allowed_congestion_control).
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    if control.read_text().strip() == "bbr":
        control.write_text("reno")


def exists(name: str) -> bool:
    """True when the name stands for a live namespace, not for a file that a reboot left."""
    path = netns_path(name)
    try:
        return os.stat(path).st_dev != os.stat(NETNS_DIRECTORY).st_dev
    except FileNotFoundError:
        return False


def delete(name: str) -> bool:
    """Remove the name; the kernel removes the namespace with its last user. False if not there."""
    path = netns_path(name)
    if not path.exists():
        return False
    mnt_detach = 2
    while _libc.umount2(os.fsencode(path), mnt_detach) == 0:
        pass
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOENT):
        raise OSError(code, f"cannot unmount {path}: {os.strerror(code)}")
    path.unlink(missing_ok=True)
    return True


def named(prefix: str) -> list[str]:
    """Names of namespaces that start with `prefix`, sorted."""
    try:
        return sorted(name for name in os.listdir(NETNS_DIRECTORY) if name.startswith(prefix))
    except FileNotFoundError:
        return []
