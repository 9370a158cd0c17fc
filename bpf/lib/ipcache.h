/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Address to identity and tunnel endpoint. Whole addresses are in a hash,
 * shorter prefixes in a trie behind it; an address in neither is the world.
 */
#pragma once

#include "common.h"

#define IPCACHE_MAX 131072
#define IPCACHE_LPM_MAX 65536

struct ipcache_value {
	__u32 identity;
	__be32 tunnel; /* the node to send it to; 0: not through the overlay */
	__u32 flags;
};
ASSERT_SIZE(struct ipcache_value, 12);

struct ipcache_lpm_key {
	__u32 prefixlen;
	__be32 addr;
};
ASSERT_SIZE(struct ipcache_lpm_key, 8);

struct ipcache6_lpm_key {
	__u32 prefixlen;
	struct in6 addr;
};
ASSERT_SIZE(struct ipcache6_lpm_key, 20);

/* Somebody reads events. */
#define NODE_EVENTS 1
/* And wants to see flows begin and end. */
#define NODE_TRACE 2

/* One row: what of the node the loader changes while programs run. */
struct node_state {
	/* Changes with every write to endpoints, subjects or ipcache, never 0
	 * once set: what a flow remembers of them is good as long as this stands. */
	__u32 generation;
	__u32 flags; /* NODE_* */
};
ASSERT_SIZE(struct node_state, 8);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, IPCACHE_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, struct ipcache_value);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ipcache4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, IPCACHE_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct in6);
	__type(value, struct ipcache_value);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ipcache6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, IPCACHE_LPM_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ipcache_lpm_key);
	__type(value, struct ipcache_value);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ipcache4_lpm SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, IPCACHE_LPM_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ipcache6_lpm_key);
	__type(value, struct ipcache_value);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ipcache6_lpm SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct node_state);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} node_state SEC(".maps");

/* What is known of an address, or NULL. */
static __always_inline const struct ipcache_value *ipcache_find(const struct in6 *addr, const bool v6)
{
	const struct ipcache_value *v;

	if (v6) {
		struct ipcache6_lpm_key key;

		key.prefixlen = 128;
		key.addr = *addr;
		v = bpf_map_lookup_elem(&ipcache6, &key.addr);
		if (v)
			return v;
		return bpf_map_lookup_elem(&ipcache6_lpm, &key);
	} else {
		struct ipcache_lpm_key key;

		key.prefixlen = 32;
		key.addr = addr->w[0];
		v = bpf_map_lookup_elem(&ipcache4, &key.addr);
		if (v)
			return v;
		return bpf_map_lookup_elem(&ipcache4_lpm, &key);
	}
}

static __always_inline __u32 node_generation(void)
{
	__u32 zero = 0;
	const struct node_state *state = bpf_map_lookup_elem(&node_state, &zero);

	return state ? state->generation : 0;
}

static __always_inline __u32 node_flags(void)
{
	__u32 zero = 0;
	const struct node_state *state = bpf_map_lookup_elem(&node_state, &zero);

	return state ? state->flags : 0;
}
