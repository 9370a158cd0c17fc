/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps of policy as they were before tiers, prefixes and audit mode of policies. */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

struct policy_key {
	__u32 instance;
	__u32 identity;
	__u8 direction;
	__u8 protocol;
	__be16 port;
	__u8 port_prefix;
	__u8 pad[3];
};

struct policy_value {
	__u8 flags;
	__u8 pad;
	__be16 proxy_port;
	__u32 rule_cookie;
	__u64 packets;
	__u64 bytes;
};

struct policy_shape {
	__u8 enforced;
	__u8 has_deny;
	__u8 audit;
	__u8 pad;
	__u32 identity_shapes;
	__u32 wildcard_shapes;
};

struct subject {
	__u32 instance;
	__u32 epoch;
	__u64 revision;
	struct policy_shape shape[2];
};

struct subject_versions {
	__u32 current;
	__u32 pad;
	struct subject version[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_key);
	__type(value, struct policy_value);
} policy SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct subject);
} subject SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct subject_versions);
} subject_array SEC(".maps");

char LICENSE[] SEC("license") = "Dual BSD/GPL";
