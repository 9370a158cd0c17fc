"""tcx links (Linux 6.6 and later), pinned, so that they outlive the loader, beside others' programs."""

from __future__ import annotations

import errno
from typing import Final

from services.loader.bpf.attach.declarations import LINK_TCX, TCX_EGRESS, TCX_INGRESS, create_link, has_hook
from services.loader.bpf.attach.links import LinkState, link_state, put_link
from services.loader.bpf.attach.places import Anchor, Hook, TcxMissing
from services.loader.bpf.native import check, said

TCX: Final = {Hook.INGRESS: TCX_INGRESS, Hook.EGRESS: TCX_EGRESS}
# BPF_F_BEFORE, BPF_F_AFTER: without a program to go by, of all or behind all.
_ANCHORS: Final = {Anchor.FIRST: 1 << 3, Anchor.LAST: 1 << 4}


def attach_link(pin: str, ifindex: int, point: Hook, program: int, anchor: Anchor = Anchor.LAST) -> bool:
    """Attaches a program (by descriptor) to a device by a tcx link pinned at ``pin``.

    The link that is pinned there is updated, and keeps its place, if it holds this device; else a new one
    takes its pin. Returns False, having done nothing, where the kernel has no tcx. Raises BpfError.
    """

    def holds(state: LinkState) -> bool:
        return (state.kind, state.ifindex, state.attach_type) == (LINK_TCX, ifindex, TCX[point])

    def create() -> int:
        link = create_link(program, ifindex, TCX[point], _ANCHORS[anchor])
        if link == -errno.EINVAL:
            # Before 6.6 the attach type is unknown; a device that is not there is ENODEV.
            said()
            raise TcxMissing
        return check(link, f"link to {point.label} of device {ifindex}")

    try:
        put_link(pin, program, holds, create)
    except TcxMissing:
        return False
    return True


def has_tcx(ifindex: int) -> bool:
    """Whether the kernel has tcx (6.6 and later); False for a device that is not there."""
    return has_hook(ifindex, TCX_INGRESS)


def link_program(pin: str) -> int | None:
    """The kernel id of the program of a pinned link that holds a device, or None."""
    state = link_state(pin)
    return state.program if state is not None and state.ifindex else None
