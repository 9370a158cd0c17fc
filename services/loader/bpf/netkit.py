"""The program of a netkit device (Linux >= 6.7) that sees what the pod sends, in the pod's own transmission.

It is attached to the device itself, not by a link: so it outlives the loader, and goes with the device, pins
or not. The kernel waits a grace period for a device's first program, and none for one that takes its place.
"""

from __future__ import annotations

import errno
import os

from services.loader.bpf.attach import Hook, attach_filters
from services.loader.bpf.attach.declarations import NETKIT_PEER
from services.loader.bpf.errors import BpfError
from services.loader.bpf.native import check, ffi, lib, said, sized

_F_REPLACE = 4
# EINVAL: a kernel that does not know the attach type; ENXIO: another kind of device.
_NO_NETKIT = (-errno.EINVAL, -errno.ENXIO, -errno.EOPNOTSUPP)


def peer_program(ifindex: int) -> int | None:
    """The kernel id of the program for what the peer of a netkit device sends; 0: there is none.

    None for another kind of device. Raises BpfError; ENODEV: no device.
    """
    ids = ffi.new("__u32[8]")
    count = ffi.new("__u32 *", 8)
    result = lib.bpf_prog_query(ifindex, NETKIT_PEER, 0, ffi.NULL, ids, count)
    if result in _NO_NETKIT:
        said()
        return None
    check(result, f"ask for the programs of device {ifindex}")
    return int(ids[0]) if count[0] else 0


def is_netkit(ifindex: int) -> bool:
    """Whether the device is a netkit pair's node side; one that is gone is not."""
    try:
        return peer_program(ifindex) is not None
    except BpfError as error:
        if error.errno == errno.ENODEV:
            return False
        raise


def attach_endpoint(ifindex: int, from_container: int, to_container: int, *, netkit: bool) -> None:
    """Attaches an endpoint's programs (by descriptor) to its device, netkit or not; again replaces in place.

    What the pod sends comes last: until then it is dropped. Raises BpfError; ENODEV: no device.
    """
    if not netkit:
        attach_filters(ifindex, {Hook.INGRESS: from_container, Hook.EGRESS: to_container})
        return
    attach_filters(ifindex, {Hook.EGRESS: to_container})
    attach_peer(ifindex, from_container)


def attach_peer(ifindex: int, program: int) -> None:
    """Lets a program (by descriptor) see what the peer sends; the one before it is replaced in one step.

    Raises BpfError; ENODEV: no device, ENXIO: no netkit device.
    """
    op = f"attach to the peer of device {ifindex}"
    present = peer_program(ifindex)
    if not present:
        check(lib.bpf_prog_attach_opts(program, ifindex, NETKIT_PEER, ffi.NULL), op)
        return
    before = check(lib.bpf_prog_get_fd_by_id(present), op)
    try:
        options = sized("struct bpf_prog_attach_opts", flags=_F_REPLACE, replace_prog_fd=before)
        result = lib.bpf_prog_attach_opts(program, ifindex, NETKIT_PEER, options)
        # The kernel refuses to replace a program by itself.
        if result == -errno.EEXIST:
            said()
            return
        check(result, op)
    finally:
        os.close(before)
