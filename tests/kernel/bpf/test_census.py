"""Counting the elements of maps beside everything else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import cffi
import pytest

from services.loader.bpf.census import count_elements
from services.loader.bpf.maps import Map
from services.loader.bpf.native import check

pytestmark = pytest.mark.kernel

HASH, ARRAY, PERCPU_HASH, LRU_HASH, LPM_TRIE, RINGBUF = 1, 2, 5, 9, 11, 27
NO_PREALLOC = 1

_ffi: Any = cffi.FFI()
_ffi.cdef(
    """
    struct bpf_map_create_opts {
        size_t sz; unsigned int btf_fd; unsigned int btf_key_type_id; unsigned int btf_value_type_id;
        unsigned int btf_vmlinux_value_type_id; unsigned int inner_map_fd; unsigned int map_flags;
        unsigned long long map_extra; unsigned int numa_node; unsigned int map_ifindex;
    };
    int bpf_map_create(int type, const char *name, unsigned int key_size, unsigned int value_size,
                       unsigned int max_entries, const struct bpf_map_create_opts *opts);
    """
)
_lib: Any = _ffi.dlopen("libbpf.so.1")
Create = Callable[..., Map]


@pytest.fixture
def create() -> Iterator[Create]:
    made: list[Map] = []

    def make(kind: int, key: int = 8, value: int = 16, entries: int = 1000, flags: int = 0) -> Map:
        options = _ffi.new("struct bpf_map_create_opts *", {"map_flags": flags})
        options.sz = _ffi.sizeof("struct bpf_map_create_opts")
        fd = check(_lib.bpf_map_create(kind, b"census", key, value, entries, options), "create a map")
        made.append(Map("census", fd))
        return made[-1]

    yield make
    for each in made:
        each.close()


def key(number: int, size: int = 8) -> bytes:
    return number.to_bytes(size, "big")


@pytest.mark.parametrize("kind", [HASH, LRU_HASH])
@pytest.mark.parametrize("count", [0, 1, 700, 30_000])
def test_elements_are_counted(create: Create, kind: int, count: int) -> None:
    found = create(kind, entries=40_000)
    found.put_many([(key(number), bytes(16)) for number in range(count)])
    assert count_elements(found.id) == count


def test_prefixes_are_counted(create: Create) -> None:
    trie = create(LPM_TRIE, flags=NO_PREALLOC)
    trie.put_many([((32).to_bytes(4, "little") + key(number, 4), bytes(16)) for number in range(300)])
    assert count_elements(trie.id) == 300


def test_elements_with_a_value_for_each_processor_are_counted(create: Create) -> None:
    found = create(PERCPU_HASH)
    values = bytes(16 * (os.cpu_count() or 1))
    for number in range(300):
        found.put(key(number), values)
    assert count_elements(found.id) == 300


def test_a_full_map_is_counted_whole(create: Create) -> None:
    found = create(HASH, entries=3)
    found.put_many([(key(number), bytes(16)) for number in range(3)])
    assert count_elements(found.id) == 3


def test_what_has_no_elements_that_come_and_go_is_not_counted(create: Create) -> None:
    assert count_elements(create(ARRAY, key=4).id) is None
    assert count_elements(create(RINGBUF, key=0, value=0, entries=4096).id) is None


def test_a_map_that_is_gone_has_no_count_and_nothing_stays_open(create: Create) -> None:
    gone = create(HASH)
    number = gone.id
    before = len(os.listdir("/proc/self/fd"))
    assert count_elements(number) == 0
    gone.close()
    assert count_elements(number) is None
    assert len(os.listdir("/proc/self/fd")) == before - 1
