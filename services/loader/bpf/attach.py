"""Puts programs on devices, always in place: what is there forwards until the moment the new one does.

Endpoint devices get clsact with direct-action filters (0.2 ms for a new device; a first tcx link waits 8-16
ms for an RCU grace period under RTNL). The node's own devices get tcx links where the kernel has them (>=
6.6), pinned, so that they outlive the loader.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from typing import Any

from services.loader.bpf.errors import BpfError
from services.loader.bpf.native import check, ffi, lib, said, sized


class Hook(IntEnum):
    """Where on a device; the numbers are enum bpf_tc_attach_point."""

    INGRESS = 1
    EGRESS = 2


# enum bpf_attach_type, newer than Debian 12's headers.
_TCX = {Hook.INGRESS: 46, Hook.EGRESS: 47}
_LINK_TYPE_TCX = 11
_CLSACT = Hook.INGRESS | Hook.EGRESS
_TC_F_REPLACE = 1
# One filter of ours per hook: a fixed place is what makes replacing it possible.
_HANDLE = 1
_PRIORITY = 1


def attach_filters(ifindex: int, programs: dict[Hook, int]) -> None:
    """Attaches programs (by descriptor) to a device with clsact, replacing ours of before.

    Raises BpfError; ENODEV: no device.
    """
    hook = sized("struct bpf_tc_hook", ifindex=ifindex, attach_point=_CLSACT)
    result = lib.bpf_tc_hook_create(hook)
    if result != -errno.EEXIST:
        check(result, f"add clsact to device {ifindex}")
    said()
    for point, fd in programs.items():
        hook.attach_point = point
        options = sized(
            "struct bpf_tc_opts", prog_fd=fd, flags=_TC_F_REPLACE, handle=_HANDLE, priority=_PRIORITY
        )
        check(lib.bpf_tc_attach(hook, options), f"attach to {point.name.lower()} of device {ifindex}")


def filter_program(ifindex: int, point: Hook) -> int | None:
    """The kernel id of our program on a device's clsact hook, or None."""
    hook = sized("struct bpf_tc_hook", ifindex=ifindex, attach_point=point)
    options = sized("struct bpf_tc_opts", handle=_HANDLE, priority=_PRIORITY)
    result = lib.bpf_tc_query(hook, options)
    said()
    return int(options.prog_id) if result == 0 else None


def attach_link(pin: str, ifindex: int, point: Hook, program: int) -> bool:
    """Attaches a program (by descriptor) to a device by a tcx link pinned at ``pin``.

    The link that is pinned there is updated if it is of this device, else replaced. Returns False, having
    done nothing, where the kernel has no tcx.
    """
    link = lib.bpf_obj_get(pin.encode())
    if link >= 0:
        try:
            if _link_device(link) == (ifindex, _TCX[point]):
                check(lib.bpf_link_update(link, program, ffi.NULL), f"update link {pin}")
                return True
        finally:
            os.close(link)
        # Its device is gone, or another one has the name now.
        os.unlink(pin)
    elif link != -errno.ENOENT:
        check(link, f"open link {pin}")
    said()
    link = lib.bpf_link_create(program, ifindex, _TCX[point], ffi.NULL)
    if link == -errno.EINVAL:
        # Before 6.6 the attach type is unknown; a device that is not there is ENODEV.
        said()
        return False
    check(link, f"link to {point.name.lower()} of device {ifindex}")
    try:
        check(lib.bpf_obj_pin(link, pin.encode()), f"pin link {pin}")
    finally:
        os.close(link)
    return True


def link_program(pin: str) -> int | None:
    """The kernel id of the program of a pinned link whose device is alive, or None."""
    link = lib.bpf_obj_get(pin.encode())
    said()
    if link < 0:
        return None
    try:
        info = _link_info(link)
        return int(info.prog_id) if info.ifindex else None
    finally:
        os.close(link)


def _link_device(link: int) -> tuple[int, int] | None:
    """(ifindex, attach type) of a tcx link; the ifindex of a link whose device is gone is 0."""
    info = _link_info(link)
    return (int(info.ifindex), int(info.attach_type)) if info.type == _LINK_TYPE_TCX else None


def _link_info(link: int) -> Any:
    info = ffi.new("struct bpf_link_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_link_info"))
    check(lib.bpf_obj_get_info_by_fd(link, info, size), "read link information")
    return info


def pin_replacing(fd: int, path: str) -> None:
    """Pins an object at ``path``, replacing what is there in one step."""
    new = f"{path}_new"  # bpffs takes no dots in names
    try:
        os.unlink(new)
    except FileNotFoundError:
        pass
    check(lib.bpf_obj_pin(fd, new.encode()), f"pin {path}")
    try:
        os.rename(new, path)
    except OSError as error:
        os.unlink(new)
        raise BpfError(error.errno or errno.EIO, f"pin {path}") from error
