/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Maps in pairs, of one version and of another: old_NAME and new_NAME. */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

struct old_value {
	__u32 count;
	__s16 signed_number;
	__u16 dropped;
	__be32 addr;
	struct {
		__u8 inner[4];
	} nested[2];
};

struct new_value {
	__be32 addr;
	__u32 added;
	__u64 count;
	__s64 signed_number;
	struct {
		__u8 inner[6];
		__u16 more;
	} nested[2];
};

struct old_key {
	__u32 number;
	__u16 port;
	__u16 pad;
};

struct new_key {
	__u16 port;
	__u16 pad;
	__u64 number;
	__u32 zone;
};

struct old_prefix {
	__u32 prefixlen;
	__be32 addr;
};

struct shrunk_key {
	__u32 number;
};

#define PAIR(name, old_type, new_type, old_flags, new_flags, old_size, new_size, old_k, new_k, old_v, new_v) \
	struct {                                            \
		__uint(type, old_type);                     \
		__uint(max_entries, old_size);              \
		__uint(map_flags, old_flags);               \
		__type(key, old_k);                         \
		__type(value, old_v);                       \
	} old_##name SEC(".maps");                          \
	struct {                                            \
		__uint(type, new_type);                     \
		__uint(max_entries, new_size);              \
		__uint(map_flags, new_flags);               \
		__type(key, new_k);                         \
		__type(value, new_v);                       \
	} new_##name SEC(".maps")

#define HASH BPF_MAP_TYPE_HASH
#define LRU BPF_MAP_TYPE_LRU_HASH
#define ARRAY BPF_MAP_TYPE_ARRAY
#define CPU_ARRAY BPF_MAP_TYPE_PERCPU_ARRAY
#define CPU_HASH BPF_MAP_TYPE_PERCPU_HASH
#define TRIE BPF_MAP_TYPE_LPM_TRIE

PAIR(value, HASH, HASH, 0, 0, 1000, 1000, __u32, __u32, struct old_value, struct new_value);
PAIR(key, HASH, HASH, 0, 0, 1000, 1000, struct old_key, struct new_key, __u32, __u64);
PAIR(lru, HASH, LRU, 0, 0, 1000, 4000, __u32, __u32, __u64, __u64);
PAIR(from_lru, LRU, HASH, 0, BPF_F_NO_PREALLOC, 4000, 4000, __u32, __u32, __u64, __u64);
PAIR(smaller, HASH, HASH, 0, 0, 4000, 1000, __u32, __u32, __u64, __u64);
PAIR(flags, HASH, HASH, 0, BPF_F_NO_PREALLOC, 1000, 1000, __u32, __u32, __u64, __u64);
PAIR(trie, TRIE, TRIE, BPF_F_NO_PREALLOC, BPF_F_NO_PREALLOC, 1000, 2000, struct old_prefix,
     struct old_prefix, struct old_value, struct new_value);
PAIR(array, ARRAY, ARRAY, 0, 0, 100, 300, __u32, __u32, struct old_value, struct new_value);
PAIR(cpu_array, CPU_ARRAY, CPU_ARRAY, 0, 0, 10, 20, __u32, __u32, struct old_value, struct new_value);
PAIR(cpu_hash, CPU_HASH, CPU_HASH, 0, 0, 100, 100, __u32, __u32, __u32, __u64);
PAIR(same, HASH, HASH, 0, 0, 1000, 1000, __u32, __u32, struct old_value, struct old_value);

/* These cannot become each other. */
PAIR(refused_key, HASH, HASH, 0, 0, 100, 100, struct old_key, struct shrunk_key, __u32, __u32);
PAIR(refused_narrower, HASH, HASH, 0, 0, 100, 100, __u32, __u32, __u64, __u32);
PAIR(refused_type, HASH, ARRAY, 0, 0, 100, 100, __u32, __u32, __u32, __u32);
PAIR(refused_prefix, TRIE, TRIE, BPF_F_NO_PREALLOC, BPF_F_NO_PREALLOC, 100, 100, struct old_prefix,
     struct old_key, __u32, __u32);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} old_ring SEC(".maps"), new_ring SEC(".maps");

char LICENSE[] SEC("license") = "Dual BSD/GPL";
