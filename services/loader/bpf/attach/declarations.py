"""What attaching needs of libbpf beyond :mod:`services.loader.bpf.native`."""

from __future__ import annotations

import errno
from typing import Any

from services.loader.bpf.native import check, ffi, lib, said, sized

ffi.cdef("""
struct fimbria_link_create_opts {
    size_t sz; __u32 flags; const void *iter_info; __u32 iter_info_len; __u32 target_btf_id;
};
struct fimbria_prog_query_opts {
    size_t sz; __u32 query_flags; __u32 attach_flags; __u32 *prog_ids; __u32 count; __u32 *prog_attach_flags;
};
int bpf_prog_get_fd_by_id(__u32 id);
int bpf_prog_query_opts(int target, int type, struct fimbria_prog_query_opts *opts);
int bpf_link_detach(int link_fd);
""")

# enum bpf_attach_type, newer than Debian 12's headers but for XDP.
XDP, TCX_INGRESS, TCX_EGRESS, NETKIT_PRIMARY, NETKIT_PEER = 37, 46, 47, 54, 55
# enum bpf_link_type
LINK_XDP, LINK_TCX = 6, 11
_MOST_PROGRAMS = 64  # BPF_MPROG_MAX


def create_link(program: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    """bpf_link_create: a descriptor, or -errno."""
    result = lib.bpf_link_create(
        program, ifindex, attach_type, sized("struct fimbria_link_create_opts", flags=flags)
    )
    return int(result)


def programs_at(ifindex: int, attach_type: int) -> list[int]:
    """Ids of the programs on a hook, in the order in which they run; none where the hook does not exist."""
    ids = ffi.new("__u32[]", _MOST_PROGRAMS)
    options = sized("struct fimbria_prog_query_opts", prog_ids=ids, count=_MOST_PROGRAMS)
    result = lib.bpf_prog_query_opts(ifindex, attach_type, options)
    said()
    return [int(ids[index]) for index in range(options.count)] if result == 0 else []


def has_hook(ifindex: int, attach_type: int) -> bool:
    """Whether the kernel, and the device, have a hook of that type."""
    options = sized("struct fimbria_prog_query_opts")
    result = lib.bpf_prog_query_opts(ifindex, attach_type, options)
    said()
    return bool(result == 0)


def program_info(fd: int) -> Any:
    """struct bpf_prog_info of a program."""
    info = ffi.new("struct bpf_prog_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    check(lib.bpf_obj_get_info_by_fd(fd, info, size), "read information on a program")
    return info


def program_maps(fd: int) -> frozenset[int]:
    """Ids of the maps that a program uses."""
    count = int(program_info(fd).nr_map_ids)
    if not count:
        return frozenset()
    ids = ffi.new("__u32[]", count)
    info = ffi.new("struct bpf_prog_info *")
    info.nr_map_ids, info.map_ids = count, int(ffi.cast("uintptr_t", ids))
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    check(lib.bpf_obj_get_info_by_fd(fd, info, size), "read the maps of a program")
    return frozenset(int(ids[index]) for index in range(min(count, info.nr_map_ids)))


def link_info(link: int) -> Any:
    """struct bpf_link_info of a link on a device."""
    info = ffi.new("struct bpf_link_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_link_info"))
    check(lib.bpf_obj_get_info_by_fd(link, info, size), "read link information")
    return info


def open_pin(path: str) -> int | None:
    """A descriptor of what is pinned there, or None."""
    fd = lib.bpf_obj_get(path.encode())
    if fd == -errno.ENOENT:
        said()
        return None
    return check(fd, f"open {path}")
