/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The port that a flow leaves by. */
#pragma once

#include "common.h"
#include "config.h"
#include "drop.h"
#include "nat_map.h"
#include "packet.h"

/* Ports tried for a new flow before it is dropped. */
#define NAT_TRIES 32

/* One row: what the choice of ports keeps. */
struct nat_state {
	__u64 secret; /* ports of flows are not to be foretold; 0: not drawn yet */
	__u32 furthest; /* the longest search that ended with a port */
	__u32 pad;
};
ASSERT_SIZE(struct nat_state, 16);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct nat_state);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nat_state SEC(".maps");

/*
 * Whether a socket of the node itself hears what the peer sends to this port.
 * Of a connection the reverse entry would take the answers away.
 */
static __always_inline bool nat_is_port_of_node(struct __sk_buff *skb, const union nat_key *reverse,
						const bool v6)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 size;
	__u8 protocol;

	if (v6) {
		__builtin_memcpy(tuple.ipv6.saddr, &reverse->v6.addr[0], sizeof(struct in6));
		__builtin_memcpy(tuple.ipv6.daddr, &reverse->v6.addr[1], sizeof(struct in6));
		tuple.ipv6.sport = reverse->v6.port[0];
		tuple.ipv6.dport = reverse->v6.port[1];
		protocol = reverse->v6.protocol;
		size = sizeof(tuple.ipv6);
	} else {
		tuple.ipv4.saddr = reverse->v4.addr[0];
		tuple.ipv4.daddr = reverse->v4.addr[1];
		tuple.ipv4.sport = reverse->v4.port[0];
		tuple.ipv4.dport = reverse->v4.port[1];
		protocol = reverse->v4.protocol;
		size = sizeof(tuple.ipv4);
	}
	if (protocol == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (protocol == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

static __always_inline bool nat_has_port(const struct packet *p, __be16 port, const bool v6)
{
	const union nat_value *present;
	union nat_key reverse;

	nat_reverse_key(&reverse, p, port, v6);
	present = nat_find(&reverse, v6);
	return present && nat_is_owner(present, p, v6);
}

/* Takes the port for p's flow if nobody has it, the node's own sockets included. */
static __always_inline bool nat_take_port(struct __sk_buff *skb, const struct packet *p,
					  __be16 port, const bool v6)
{
	union nat_key reverse;

	nat_reverse_key(&reverse, p, port, v6);
	return !nat_find(&reverse, v6) && !nat_is_port_of_node(skb, &reverse, v6) &&
	       nat_claim(&reverse, p, v6);
}

/* Global functions, so that the loops below cost the verifier little. */
__noinline int nat_has_port4(const struct packet *p, __u32 port)
{
	return p && nat_has_port(p, port, false);
}

__noinline int nat_has_port6(const struct packet *p, __u32 port)
{
	return p && nat_has_port(p, port, true);
}

__noinline int nat_take_port4(struct __sk_buff *skb, const struct packet *p, __u32 port)
{
	return p && nat_take_port(skb, p, port, false);
}

__noinline int nat_take_port6(struct __sk_buff *skb, const struct packet *p, __u32 port)
{
	return p && nat_take_port(skb, p, port, true);
}

/* The ports that a flow may have, in the order in which they are tried. */
struct nat_search {
	__u32 start;
	__u32 next;
	__u32 range;
	__u16 min;
	__be16 own; /* the pod's; tried first if it is in the range */
};

/*
 * The same order for the same flow each time; for whoever does not know the
 * secret a random one (RFC 6056, algorithm 3, but that the pod's port is in it).
 */
static __always_inline void nat_search_init(struct nat_search *s, struct nat_state *state,
					    const struct packet *p, const bool v6)
{
	__u64 hash = state->secret;
	int i;

	if (unlikely(!hash)) {
		/* If two CPUs draw at once, flows of the loser find their port less well. */
		hash = (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32() | 1;
		state->secret = hash;
	}
#define NAT_MIX(value) (hash = (hash ^ (value)) * 0x9e3779b97f4a7c15ULL, hash ^= hash >> 29)
	for (i = 0; i < (v6 ? 4 : 1); i++)
		NAT_MIX((__u64)p->flow_saddr.w[i] << 32 | p->daddr.w[i]);
	NAT_MIX((__u64)p->protocol << 32 | (__u32)p->sport << 16 | p->dport);
	NAT_MIX(state->secret >> 32);
#undef NAT_MIX
	s->start = hash >> 32;
	s->min = CONFIG(nat_port_min);
	s->range = CONFIG(nat_port_max) - CONFIG(nat_port_min) + 1;
	s->own = p->sport;
}

/* Returns the number i of the order; i counts from 0, one by one. */
static __always_inline __be16 nat_search_port(struct nat_search *s, __u32 i)
{
	__u32 offset;

	if (!i) {
		s->next = s->start;
		if ((__u32)bpf_ntohs(s->own) - s->min < s->range)
			return s->own;
	}
	if (s->range < NAT_TRIES) {
		/* So few that each can be tried. */
		offset = (s->start + i) % s->range;
	} else {
		offset = (__u64)s->next * s->range >> 32;
		s->next = s->next * 1664525 + 1013904223;
	}
	return bpf_htons(s->min + offset);
}

/*
 * The port for a flow that has no original entry: the one that it had before,
 * else a free one. Returns the port (network order), or a DROP() when there is none.
 */
static __always_inline int nat_find_port(struct __sk_buff *skb, const struct packet *p,
					 const bool v6)
{
	struct nat_search s;
	struct nat_state *state;
	__u32 zero = 0, i;
	__be16 port;

	state = CONFIG(masquerade) ? bpf_map_lookup_elem(&nat_state, &zero) : NULL;
	if (!state)
		return DROP(DROP_NAT_NO_MAPPING);
	nat_search_init(&s, state, p, v6);

	for (i = 0; i < NAT_TRIES; i++) {
		if (i > state->furthest)
			break;
		port = nat_search_port(&s, i);
		if (v6 ? nat_has_port6(p, port) : nat_has_port4(p, port))
			return port;
	}
	for (i = 0; i < NAT_TRIES; i++) {
		port = nat_search_port(&s, i);
		if (!(v6 ? nat_take_port6(skb, p, port) : nat_take_port4(skb, p, port)))
			continue;
		if (i > state->furthest)
			state->furthest = i;
		return port;
	}
	return DROP(DROP_NAT_NO_MAPPING);
}

/* Gives p's flow a port and both its entries. Returns as nat_find_port(). */
static __always_inline int nat_create(struct __sk_buff *skb, const struct packet *p, const bool v6)
{
	const union nat_value *present;
	union nat_key key; /* one for all: the stack is short */
	union nat_value value;
	struct in6 node;
	int port;

	if (p->protocol == IPPROTO_SCTP) {
		port = p->sport;
		if (!(v6 ? nat_has_port6(p, port) : nat_has_port4(p, port)) &&
		    !(v6 ? nat_take_port6(skb, p, port) : nat_take_port4(skb, p, port)))
			return DROP(DROP_NAT_NO_MAPPING);
	} else {
		port = nat_find_port(skb, p, v6);
		if (port < 0)
			return port;
	}

	nat_original_key(&key, p, v6);
	nat_address(&node, v6);
	nat_value_init(&value, &node, port, v6);
	if (!nat_update(&key, &value, v6))
		return port;
	/* Another packet of the flow was faster, then its port is the flow's; or there is no room. */
	present = nat_find(&key, v6);
	if (!present || nat_value_port(present, v6) == (__be16)port)
		return port;
	nat_reverse_key(&key, p, port, v6);
	port = nat_value_port(present, v6);
	nat_delete(&key, v6);
	return port;
}

__noinline int nat_create4(struct __sk_buff *skb, const struct packet *p)
{
	return p ? nat_create(skb, p, false) : DROP(DROP_INVALID);
}

__noinline int nat_create6(struct __sk_buff *skb, const struct packet *p)
{
	return p ? nat_create(skb, p, true) : DROP(DROP_INVALID);
}
