/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The two entries of a translated flow: the original one leads from the flow
 * to its port on the node, the reverse one from what an answer looks like to
 * the pod. The reverse entry owns the port.
 */
#pragma once

#include "common.h"
#include "config.h"
#include "conntrack.h"
#include "packet.h"

/* Two for each flow of conntrack's table. */
#define NAT_MAX 262144
#define NAT_EXCLUDE_MAX 4096

#define NAT_ORIGINAL 0
#define NAT_REVERSE 1

struct nat4_key {
	__be32 addr[2]; /* source, destination of the packet that looks it up */
	__be16 port[2]; /* ICMP echo: the identifier, twice */
	__u8 protocol;
	__u8 kind; /* NAT_ORIGINAL, NAT_REVERSE */
	__u16 pad;
};
ASSERT_SIZE(struct nat4_key, 16);

struct nat4_value {
	__be32 addr; /* of an original entry the node's, of a reverse one the pod's */
	__be16 port;
	__u16 pad;
	__u32 created; /* in ticks, see conntrack.h */
};
ASSERT_SIZE(struct nat4_value, 12);

struct nat6_key {
	struct in6 addr[2];
	__be16 port[2];
	__u8 protocol;
	__u8 kind;
	__u16 pad;
};
ASSERT_SIZE(struct nat6_key, 40);

struct nat6_value {
	struct in6 addr;
	__be16 port;
	__u16 pad;
	__u32 created;
};
ASSERT_SIZE(struct nat6_value, 24);

union nat_key {
	struct nat4_key v4;
	struct nat6_key v6;
};

union nat_value {
	struct nat4_value v4;
	struct nat6_value v6;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, NAT_MAX);
	__type(key, struct nat4_key);
	__type(value, struct nat4_value);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nat4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, NAT_MAX);
	__type(key, struct nat6_key);
	__type(value, struct nat6_value);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nat6 SEC(".maps");

/* Destinations that are reached with the pod's own address. */
struct nat_exclude4_key {
	__u32 prefixlen;
	__be32 addr;
};
ASSERT_SIZE(struct nat_exclude4_key, 8);

struct nat_exclude6_key {
	__u32 prefixlen;
	struct in6 addr;
};
ASSERT_SIZE(struct nat_exclude6_key, 20);

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, NAT_EXCLUDE_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct nat_exclude4_key);
	__type(value, __u32); /* unused */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nat_exclude4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, NAT_EXCLUDE_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct nat_exclude6_key);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nat_exclude6 SEC(".maps");

/*
 * A node that does not masquerade has none of these maps: its loader leaves
 * them out, and what refers to them must be dead by the constant alone, in
 * every global function by itself (kernels before 6.8 verify those even if
 * nobody calls them).
 */

/* Whether packets to this address keep the pod's. */
static __always_inline bool nat_excluded(const struct in6 *addr, const bool v6)
{
	if (!CONFIG(masquerade))
		return true;
	if (v6) {
		struct nat_exclude6_key key = { .prefixlen = 128, .addr = *addr };

		return bpf_map_lookup_elem(&nat_exclude6, &key);
	} else {
		struct nat_exclude4_key key = { .prefixlen = 32, .addr = addr->w[0] };

		return bpf_map_lookup_elem(&nat_exclude4, &key);
	}
}

static __always_inline bool nat_is_icmp(const struct packet *p, const bool v6)
{
	return p->protocol == (v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

/* The address that flows of this family leave with. */
static __always_inline void nat_address(struct in6 *addr, const bool v6)
{
	int i;

	__builtin_memset(addr, 0, sizeof(*addr));
	if (v6)
		for (i = 0; i < 4; i++)
			addr->w[i] = CONFIG(node_ipv6).w[i];
	else
		addr->w[0] = CONFIG(node_ipv4);
}

static __always_inline void nat_key_init(union nat_key *key, const struct in6 *src, __be16 sport,
					 const struct in6 *dst, __be16 dport, __u8 protocol,
					 __u8 kind, const bool v6)
{
	if (v6) {
		key->v6.addr[0] = *src;
		key->v6.addr[1] = *dst;
		key->v6.port[0] = sport;
		key->v6.port[1] = dport;
		key->v6.protocol = protocol;
		key->v6.kind = kind;
		key->v6.pad = 0;
	} else {
		key->v4.addr[0] = src->w[0];
		key->v4.addr[1] = dst->w[0];
		key->v4.port[0] = sport;
		key->v4.port[1] = dport;
		key->v4.protocol = protocol;
		key->v4.kind = kind;
		key->v4.pad = 0;
	}
}

static __always_inline void nat_original_key(union nat_key *key, const struct packet *p,
					     const bool v6)
{
	nat_key_init(key, &p->flow_saddr, p->sport, &p->daddr, p->dport, p->protocol, NAT_ORIGINAL,
		     v6);
}

/* What an answer to p looks like once p has left by this port. */
static __always_inline void nat_reverse_key(union nat_key *key, const struct packet *p, __be16 port,
					    const bool v6)
{
	struct in6 node;

	nat_address(&node, v6);
	/* An echo has one identifier, which comes back as it went. */
	nat_key_init(key, &p->daddr, nat_is_icmp(p, v6) ? port : p->dport, &node, port,
		     p->protocol, NAT_REVERSE, v6);
}

static __always_inline void nat_value_init(union nat_value *value, const struct in6 *addr,
					   __be16 port, const bool v6)
{
	__u32 now = ct_now();

	if (v6)
		value->v6 = (struct nat6_value){ .addr = *addr, .port = port, .created = now };
	else
		value->v4 = (struct nat4_value){ .addr = addr->w[0], .port = port, .created = now };
}

static __always_inline __be16 nat_value_port(const union nat_value *value, const bool v6)
{
	return v6 ? value->v6.port : value->v4.port;
}

static __always_inline void nat_value_address(struct in6 *addr, const union nat_value *value,
					      const bool v6)
{
	if (v6)
		*addr = value->v6.addr;
	else
		*addr = (struct in6){ .w = { value->v4.addr } };
}

static __always_inline bool nat_value_has_address(const union nat_value *value,
						  const struct in6 *addr, const bool v6)
{
	return v6 ? in6_equal(&value->v6.addr, addr) : value->v4.addr == addr->w[0];
}

static __always_inline union nat_value *nat_find(const union nat_key *key, const bool v6)
{
	if (!CONFIG(masquerade))
		return NULL;
	return v6 ? bpf_map_lookup_elem(&nat6, key) : bpf_map_lookup_elem(&nat4, key);
}

/* Makes an entry that is not there yet: of two CPUs one gets an error. */
static __always_inline int nat_update(const union nat_key *key, const union nat_value *value,
				      const bool v6)
{
	if (!CONFIG(masquerade))
		return -1;
	return v6 ? bpf_map_update_elem(&nat6, key, value, BPF_NOEXIST) :
		    bpf_map_update_elem(&nat4, key, value, BPF_NOEXIST);
}

static __always_inline void nat_delete(const union nat_key *key, const bool v6)
{
	if (!CONFIG(masquerade))
		return;
	if (v6)
		bpf_map_delete_elem(&nat6, key);
	else
		bpf_map_delete_elem(&nat4, key);
}

/* Whether a reverse entry leads to the sender of p. */
static __always_inline bool nat_is_owner(const union nat_value *reverse, const struct packet *p,
					 const bool v6)
{
	return nat_value_port(reverse, v6) == p->sport &&
	       nat_value_has_address(reverse, &p->flow_saddr, v6);
}

/*
 * Takes the port of a reverse key for p's flow. Returns whether the flow has
 * it now: by this, or because another CPU did the same for it.
 */
static __always_inline bool nat_claim(const union nat_key *reverse, const struct packet *p,
				      const bool v6)
{
	const union nat_value *present;
	union nat_value value;

	nat_value_init(&value, &p->flow_saddr, p->sport, v6);
	if (!nat_update(reverse, &value, v6))
		return true;
	present = nat_find(reverse, v6);
	return present && nat_is_owner(present, p, v6);
}
