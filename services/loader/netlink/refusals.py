"""What the kernel refuses over netlink, as the loader's errors."""

from __future__ import annotations

import errno

from services.chassis.errors import (
    FailedPrecondition,
    FimbriaError,
    Internal,
    PermissionDenied,
    Unavailable,
)


def kernel_error(exc: OSError, device: str) -> FimbriaError:
    """The error for a refusal that concerns ``device``: PermissionDenied (CAPABILITY_MISSING), Unavailable
    (KERNEL_TIMEOUT), FailedPrecondition (KERNEL_FEATURE_MISSING), Internal (KERNEL_REFUSED).
    """
    metadata = {"device": device, "errno": errno.errorcode.get(exc.errno or 0, str(exc.errno))}
    if isinstance(exc, TimeoutError):
        return Unavailable(
            f"{device}: the kernel did not answer over netlink", reason="KERNEL_TIMEOUT", metadata=metadata
        )
    if exc.errno in (errno.EPERM, errno.EACCES):
        return PermissionDenied(
            f"{exc}; the loader needs CAP_NET_ADMIN and CAP_SYS_ADMIN",
            reason="CAPABILITY_MISSING",
            metadata=metadata,
        )
    if exc.errno == errno.EOPNOTSUPP:
        feature = "netkit" if "create netkit" in str(exc) else "veth"
        return FailedPrecondition(
            f"{exc}; the kernel has no {feature} devices (CONFIG_{feature.upper()})",
            reason="KERNEL_FEATURE_MISSING",
            metadata={**metadata, "feature": feature},
        )
    return Internal(f"the kernel refused: {exc}", reason="KERNEL_REFUSED", metadata=metadata)
