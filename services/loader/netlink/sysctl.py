"""Kernel settings under /proc/sys, those of the calling thread's network namespace where they have one."""

from __future__ import annotations

import errno

from services.chassis.errors import FailedPrecondition


def write_sysctl(name: str, value: str) -> bool:
    """Sets ``name`` (``net/ipv4/ip_forward``) unless it has that value; returns whether it was changed.

    Raises FailedPrecondition (SYSCTL_READ_ONLY, KERNEL_FEATURE_MISSING).
    """
    path = f"/proc/sys/{name}"
    try:
        with open(path, encoding="ascii") as file:
            if file.read().strip() == value:
                return False
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except FileNotFoundError as exc:
        raise FailedPrecondition(
            f"the kernel has no setting {path}",
            reason="KERNEL_FEATURE_MISSING",
            metadata={"feature": name},
        ) from exc
    except OSError as exc:
        if exc.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise FailedPrecondition(
            f"{path} must be {value} and cannot be set: {exc.strerror}; set it, or mount /proc/sys writable",
            reason="SYSCTL_READ_ONLY",
            metadata={"setting": name, "value": value},
        ) from exc
    return True
