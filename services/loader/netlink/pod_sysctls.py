"""Kernel settings of a pod's network namespace that its network configuration asks for."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import suppress

from services.chassis.errors import FailedPrecondition, FimbriaError, InvalidArgument
from services.loader.netlink.namespace import NamespaceThread

_thread = NamespaceThread()


def apply_pod_sysctls(netns_fd: int, settings: Mapping[str, str]) -> None:
    """Sets paths below /proc/sys/, all under ``net/``, in the namespace; all of them or none.

    Raises InvalidArgument (SYSCTL_UNKNOWN, SYSCTL_REFUSED, NETNS_INVALID), FailedPrecondition
    (SYSCTL_READ_ONLY), Unavailable.
    """
    try:
        _thread.run(netns_fd, lambda: _apply(settings))
    except OSError as exc:
        raise _not_entered(exc) from exc


def pod_sysctl_problems(netns_fd: int, settings: Mapping[str, str]) -> list[str]:
    """Which settings have another value, in words. Raises InvalidArgument (NETNS_INVALID), Unavailable."""

    def work() -> list[str]:
        found = []
        for path, value in settings.items():
            try:
                actual = _read(path)
            except OSError as exc:
                found.append(f"sysctl {path} cannot be read: {exc.strerror}; expected {value!r}")
                continue
            if actual.split() != value.split():
                found.append(f"sysctl {path} is {actual!r}; expected {value!r}")
        return found

    try:
        return _thread.run(netns_fd, work)
    except OSError as exc:
        raise _not_entered(exc) from exc


def _apply(settings: Mapping[str, str]) -> None:
    before: dict[str, str] = {}
    try:
        for path, value in settings.items():
            try:
                old = _read(path)
                if old.split() == value.split():
                    continue
                before[path] = old
                _write(path, value)
            except OSError as exc:
                raise _refusal(path, value, exc) from exc
    except BaseException:
        for path, value in reversed(before.items()):
            with suppress(OSError):
                _write(path, value)
        raise


def _read(path: str) -> str:
    with open(f"/proc/sys/{path}", encoding="ascii") as file:
        return file.read().strip()


def _write(path: str, value: str) -> None:
    with open(f"/proc/sys/{path}", "w", encoding="ascii") as file:
        file.write(value)


def _refusal(path: str, value: str, exc: OSError) -> FimbriaError:
    field = f"network configuration: sysctl: {path}"
    metadata = {"setting": path, "value": value}
    if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return InvalidArgument(
            f"{field}: the pod's network namespace has no such setting; "
            "expected one that is in its /proc/sys/net",
            reason="SYSCTL_UNKNOWN",
            metadata=metadata,
        )
    if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return FailedPrecondition(
            f"{field}: cannot be set to {value!r}: {exc.strerror}; "
            "set it on the node, or mount /proc/sys writable for the loader",
            reason="SYSCTL_READ_ONLY",
            metadata=metadata,
        )
    return InvalidArgument(
        f"{field}: the kernel refused {value!r}: {exc.strerror}", reason="SYSCTL_REFUSED", metadata=metadata
    )


def _not_entered(exc: OSError) -> FimbriaError:
    return InvalidArgument(
        f"the pod's network namespace cannot be entered: {exc.strerror}", reason="NETNS_INVALID"
    )
