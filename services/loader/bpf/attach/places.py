"""What is attached, where and how: the words that the modules of this package share."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from services.loader.bpf.errors import BpfError, DatapathUnavailable


class TcxMissing(DatapathUnavailable):
    """The kernel has no tcx, and nothing else may be used."""

    def __init__(self) -> None:
        super().__init__(
            "the kernel has no tcx links (they came with Linux 6.6); have FIMBRIA_ATTACH_MODE and "
            "FIMBRIA_ENDPOINT_ATTACH_MODE be auto or clsact"
        )


class Hook(IntEnum):
    """Where on a device; the numbers are enum bpf_tc_attach_point."""

    INGRESS = 1
    EGRESS = 2

    @property
    def label(self) -> str:
        """ "ingress" or "egress"."""
        return self.name.lower()


class Kind(StrEnum):
    """What holds a program on its hook."""

    TCX = "tcx"
    CLSACT = "clsact"
    XDP_NATIVE = "xdp-native"
    XDP_GENERIC = "xdp-generic"
    NETKIT = "netkit"


class Mode(StrEnum):
    """What to hold a program with. AUTO: a tcx link where the kernel has them, else a filter."""

    AUTO = "auto"
    TCX = "tcx"
    CLSACT = "clsact"


class Anchor(StrEnum):
    """Where a new tcx link goes among those that are on the hook already."""

    FIRST = "first"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Place:
    """A program (by descriptor) and the hook that it is to run on.

    ``pin`` is where its link is pinned if it gets one, "" where it can get none. On a device that is
    ``exclusive`` to Fimbria, a program of the same name is a former one of this node even if nothing else
    tells so; elsewhere it may be another node's.
    """

    ifindex: int
    hook: Hook
    program: int
    pin: str = ""
    exclusive: bool = False

    def __str__(self) -> str:
        return f"{self.hook.label} of device {self.ifindex}"


@dataclass(frozen=True, slots=True)
class Attached:
    """What became of a place: what holds the program there now, or why nothing does or an older one."""

    place: Place
    kind: Kind | None
    error: BpfError | None = None

    @property
    def device_gone(self) -> bool:
        """Whether it failed because there is no such device (any more)."""
        return self.error is not None and self.error.errno in (errno.ENODEV, errno.ENXIO)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A program of ours that was found on a device. ``hook``: "ingress", "egress", "xdp", "netkit-primary"
    or "netkit-peer"; ``program`` is the kernel's id.
    """

    ifindex: int
    hook: str
    kind: Kind
    program: int
