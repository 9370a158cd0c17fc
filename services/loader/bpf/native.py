"""libbpf, as little of it as the loader needs, through cffi in ABI mode: nothing is compiled at install time.

``ffi`` and ``lib`` are the library itself; :func:`check` and :func:`check_pointer` turn its results into
errors; libbpf prints nothing, what it would have printed ends up in those errors.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import cffi

from services.loader.bpf.errors import BpfError, DatapathUnavailable

_SONAME = "libbpf.so.1"

_CDEF = """ typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32; typedef
unsigned long long __u64; struct bpf_object; struct bpf_program; struct bpf_map; struct btf; struct
ring_buffer; struct btf_type { __u32 name_off; __u32 info; __u32 size_or_type; }; struct btf_var_secinfo {
__u32 type; __u32 offset; __u32 size; };

struct bpf_object_open_opts {
    size_t sz; const char *object_name; bool relaxed_maps; const char *pin_root_path; __u32 :32; const char
    *kconfig; const char *btf_custom_path; char *kernel_log_buf; size_t kernel_log_size; __u32
    kernel_log_level; }; struct bpf_object *bpf_object__open_file(const char *path, const struct
    bpf_object_open_opts *opts); int bpf_object__load(struct bpf_object *obj); void bpf_object__close(struct
    bpf_object *obj); struct btf *bpf_object__btf(const struct bpf_object *obj); struct bpf_program
    *bpf_object__next_program(const struct bpf_object *obj, struct bpf_program *prog); const char
    *bpf_program__name(const struct bpf_program *prog); int bpf_program__fd(const struct bpf_program *prog);
    int bpf_program__set_log_buf(struct bpf_program *prog, char *log_buf, size_t log_size); struct bpf_map
    *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map); const char
    *bpf_map__name(const struct bpf_map *map); int bpf_map__fd(const struct bpf_map *map); int
    bpf_map__type(const struct bpf_map *map); __u32 bpf_map__key_size(const struct bpf_map *map); __u32
    bpf_map__value_size(const struct bpf_map *map); __u32 bpf_map__max_entries(const struct bpf_map *map);
    __u32 bpf_map__map_flags(const struct bpf_map *map); int bpf_map__set_max_entries(struct bpf_map *map,
    __u32 max_entries); bool bpf_map__is_internal(const struct bpf_map *map); const void
    *bpf_map__initial_value(struct bpf_map *map, size_t *psize); int bpf_map__set_initial_value(struct bpf_map
    *map, const void *data, size_t size); int bpf_map__reuse_fd(struct bpf_map *map, int fd); int
    bpf_map__set_pin_path(struct bpf_map *map, const char *path); int btf__find_by_name_kind(const struct btf
    *btf, const char *type_name, __u32 kind); const struct btf_type *btf__type_by_id(const struct btf *btf,
    __u32 id); const char *btf__name_by_offset(const struct btf *btf, __u32 offset); int
    libbpf_num_possible_cpus(void); void *libbpf_set_print(int (*fn)(int, const char *, void *));

struct bpf_map_batch_opts { size_t sz; __u64 elem_flags; __u64 flags; };
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
int bpf_map_get_fd_by_id(__u32 id);
int bpf_map_update_batch(int fd, const void *keys, const void *values, __u32 *count,
                         const struct bpf_map_batch_opts *opts);
int bpf_map_delete_batch(int fd, const void *keys, __u32 *count, const struct bpf_map_batch_opts *opts);
int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values, __u32 *count,
                         const struct bpf_map_batch_opts *opts);
int bpf_obj_pin(int fd, const char *pathname);
int bpf_obj_get(const char *pathname);
int bpf_obj_get_info_by_fd(int bpf_fd, void *info, __u32 *info_len);
int bpf_link_create(int prog_fd, int target_fd, int attach_type, const void *opts);
int bpf_link_update(int link_fd, int new_prog_fd, const void *opts);

struct bpf_map_info {
    __u32 type; __u32 id; __u32 key_size; __u32 value_size; __u32 max_entries; __u32 map_flags; char name[16];
    __u32 ifindex; __u32 btf_vmlinux_value_type_id; __u64 netns_dev; __u64 netns_ino; __u32 btf_id;
    __u32 btf_key_type_id; __u32 btf_value_type_id; __u32 pad; __u64 map_extra;
};
struct bpf_prog_info {
    __u32 type; __u32 id; __u8 tag[8]; __u32 jited_prog_len; __u32 xlated_prog_len; __u64 jited_prog_insns;
    __u64 xlated_prog_insns; __u64 load_time; __u32 created_by_uid; __u32 nr_map_ids; __u64 map_ids; char
    name[16]; __u32 ifindex; __u32 gpl_compatible; __u64 netns_dev; __u64 netns_ino; __u32 nr_jited_ksyms;
    __u32 nr_jited_func_lens; __u64 jited_ksyms; __u64 jited_func_lens; __u32 btf_id; __u32
    func_info_rec_size; __u64 func_info; __u32 nr_func_info; __u32 nr_line_info; __u64 line_info; __u64
    jited_line_info; __u32 nr_jited_line_info; __u32 line_info_rec_size; __u32 jited_line_info_rec_size; __u32
    nr_prog_tags; __u64 prog_tags; __u64 run_time_ns; __u64 run_cnt; __u64 recursion_misses; __u32
    verified_insns; __u32 attach_btf_obj_id; __u32 attach_btf_id; __u32 pad; }; /* The union's member for tcx,
    which Debian 12's headers lack. */ struct bpf_link_info { __u32 type; __u32 id; __u32 prog_id; __u32 pad;
    __u32 ifindex; __u32 attach_type; __u64 rest[3]; };

struct bpf_tc_hook { size_t sz; int ifindex; int attach_point; __u32 parent; };
struct bpf_tc_opts { size_t sz; int prog_fd; __u32 flags; __u32 prog_id; __u32 handle; __u32 priority; };
int bpf_tc_hook_create(struct bpf_tc_hook *hook);
int bpf_tc_attach(const struct bpf_tc_hook *hook, struct bpf_tc_opts *opts);
int bpf_tc_query(const struct bpf_tc_hook *hook, struct bpf_tc_opts *opts);

struct ring_buffer *ring_buffer__new(int map_fd, int (*fn)(void *, void *, size_t), void *ctx, const void
*opts); void ring_buffer__free(struct ring_buffer *rb); int ring_buffer__consume(struct ring_buffer *rb); int
ring_buffer__epoll_fd(const struct ring_buffer *rb);

struct bpf_test_run_opts {
    size_t sz; const void *data_in; void *data_out; __u32 data_size_in; __u32 data_size_out; const void
    *ctx_in; void *ctx_out; __u32 ctx_size_in; __u32 ctx_size_out; __u32 retval; int repeat; __u32 duration;
    __u32 flags; __u32 cpu; __u32 batch_size; }; int bpf_prog_test_run_opts(int prog_fd, struct
    bpf_test_run_opts *opts);

struct btf_array { __u32 type; __u32 index_type; __u32 nelems; };
struct btf_member { __u32 name_off; __u32 type; __u32 offset; };
struct btf *btf__load_from_kernel_by_id(__u32 id);
void btf__free(struct btf *btf);
__u32 bpf_map__btf_key_type_id(const struct bpf_map *map);
__u32 bpf_map__btf_value_type_id(const struct bpf_map *map);
const char *bpf_map__pin_path(const struct bpf_map *map);
int bpf_map__set_autocreate(struct bpf_map *map, bool autocreate);
int bpf_program__set_autoload(struct bpf_program *prog, bool autoload);
int bpf_program__set_log_level(struct bpf_program *prog, __u32 log_level);
int ring_buffer__add(struct ring_buffer *rb, int map_fd, int (*fn)(void *, void *, size_t), void *ctx);

struct bpf_prog_attach_opts { size_t sz; unsigned int flags; int replace_prog_fd; };
int bpf_prog_attach_opts(int prog_fd, int target, int attach_type, const struct bpf_prog_attach_opts *opts);
int bpf_prog_query(int target, int attach_type, __u32 query_flags, __u32 *attach_flags, __u32 *prog_ids,
                   __u32 *prog_cnt);

int vsnprintf(char *str, size_t size, const char *format, void *args);
"""

_LINE_BYTES = 4096
_WARN = 0  # enum libbpf_print_level


def _open() -> tuple[Any, Any]:
    ffi = cffi.FFI()
    ffi.cdef(_CDEF)
    try:
        return ffi, ffi.dlopen(_SONAME)
    except OSError as error:
        raise DatapathUnavailable(
            f"{_SONAME} cannot be loaded ({error}); install libbpf1 (Debian: apt-get install libbpf1)"
        ) from error


ffi: Any
lib: Any
ffi, lib = _open()
_libc: Any = ffi.dlopen(None)
_log = threading.local()


@ffi.callback("int(int, const char *, void *)")  # type: ignore[untyped-decorator]
def _collect(level: int, form: Any, args: Any) -> int:
    """libbpf's printer.

    A va_list is passed as a pointer on x86-64 and on arm64, so vsnprintf takes it as it comes.
    """
    if level != _WARN:
        return 0
    line = ffi.new("char[]", _LINE_BYTES)
    size = _libc.vsnprintf(line, _LINE_BYTES, form, args)
    lines: deque[str] = _log.__dict__.setdefault("lines", deque(maxlen=32))
    lines.append(ffi.string(line, _LINE_BYTES).decode(errors="replace").strip())
    return int(size)


lib.libbpf_set_print(_collect)


def said() -> str:
    """What libbpf would have printed since this was last asked, warnings only, as one line."""
    lines: deque[str] = _log.__dict__.setdefault("lines", deque(maxlen=32))
    text = "; ".join(line.removeprefix("libbpf: ") for line in lines if line)
    lines.clear()
    return text


def check(result: int, op: str) -> int:
    """Returns a result that is not negative. Raises BpfError for one that is (libbpf 1 returns -errno)."""
    if result < 0:
        raise BpfError(-result, op, said())
    return result


def check_pointer(pointer: Any, op: str) -> Any:
    """Returns a pointer that is not NULL. Raises BpfError with errno for NULL."""
    if pointer == ffi.NULL:
        raise BpfError(ffi.errno or 22, op, said())
    return pointer


def sized(ctype: str, **fields: Any) -> Any:
    """A libbpf options struct: zero but for its size and the given fields."""
    options = ffi.new(f"{ctype} *")
    options.sz = ffi.sizeof(ctype)
    for name, value in fields.items():
        setattr(options, name, value)
    return options
