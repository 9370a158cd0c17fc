"""Kernel settings under /proc/sys, those of the calling thread's network namespace where they have one."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from services.chassis.errors import FailedPrecondition

IPV6_SETTINGS = "/proc/sys/net/ipv6"


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


def require_ipv6() -> None:
    """Raises FailedPrecondition (KERNEL_FEATURE_MISSING) when this kernel has no IPv6."""
    if not Path(IPV6_SETTINGS).is_dir():
        raise FailedPrecondition(
            "the pool has IPv6 addresses, and this kernel has no IPv6; boot one with CONFIG_IPV6 and without "
            "ipv6.disable=1, or use a pool of IPv4 alone",
            reason="KERNEL_FEATURE_MISSING",
            metadata={"feature": "ipv6"},
        )


def allow_ipv6(device: str) -> None:
    """Lets a device have IPv6 where the system's default is that none has. Raises as :func:`write_sysctl`."""
    require_ipv6()
    write_sysctl(f"net/ipv6/conf/{device}/disable_ipv6", "0")


def accept_no_router(device: str) -> None:
    """A device takes nobody's word for routes and addresses, and asks nobody. Raises as
    :func:`write_sysctl`.
    """
    write_sysctl(f"net/ipv6/conf/{device}/accept_ra", "0")


def keep_router_while_forwarding(device: str) -> None:
    """A device that learns its default route from a router goes on doing so on a node that forwards.

    To the kernel accept_ra 1 means "unless this node is a router itself", 2 means "always".
    """
    name = f"net/ipv6/conf/{device}/accept_ra"
    with contextlib.suppress(FileNotFoundError):
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            accepts = file.read().strip()
        if accepts == "1":
            write_sysctl(name, "2")
