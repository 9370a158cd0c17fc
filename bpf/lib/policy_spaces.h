/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The verdict under policies of several tiers, by addresses, or in audit mode.
 * Few subjects have any of it: the others' packets meet one test of their row
 * and go on to policy.h.
 */
#pragma once

#include "common.h"
#include "drop.h"
#include "ipcache.h"
#include "packet.h"
#include "policy.h"

/* Bits of policy_shape.spaces. */
#define SPACES_IN_FORCE 0x00ffu
#define SPACES_AUDIT 0xff00u
#define SPACES_BY_ADDRESS 0x7070u

#define RANK_NONE (~0ULL)

/*
 * A verdict in the making: off the stack, which is short, and where older
 * verifiers take no key behind a pointer that a global function got.
 */
struct policy_layers {
	struct policy_key key; /* of the lookup at hand */
	struct policy_key found; /* of the entry that ranks first in its tier so far */
	__u64 rank; /* of that: its order, and of equals deny before pass before allow */
	__u32 cookie;
	__u32 number; /* of the prefix that holds the other end's address, 0: of none */
	__be16 port; /* not masked */
	__u8 protocol;
	__u8 flags; /* of the entry found */
	__u32 pad;
};
ASSERT_SIZE(struct policy_layers, 56);

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct policy_layers);
} policy_fresh SEC(".maps");

static __always_inline struct policy_layers *policy_layers(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&policy_fresh, &zero);
}

/* Whether the normal tier's entries for identities are all that there is. */
static __always_inline bool policy_is_plain(const struct policy_shape *shape)
{
	return !shape->spaces && !(shape->audit & AUDIT_ENFORCED);
}

/* Whether a packet can be denied at all. */
static __always_inline bool policy_is_in_force(const struct policy_shape *shape)
{
	return shape->enforced || shape->has_deny || shape->spaces & SPACES_IN_FORCE;
}

static __always_inline void layers_probe(struct policy_layers *l, __u32 identity, __u8 protocol,
					 __u32 prefix)
{
	const struct policy_value *v;
	__u64 rank;

	l->key.identity = identity;
	l->key.protocol = protocol;
	l->key.port_prefix = prefix;
	l->key.port = prefix ? l->port & bpf_htons((__u16)(0xffff << (16 - prefix))) : 0;
	v = bpf_map_lookup_elem(&policy, &l->key);
	if (!v)
		return;
	rank = (__u64)v->order << 2 | (v->flags & POLICY_DENY ? 0 : v->flags & POLICY_PASS ? 1 : 2);
	if (rank >= l->rank)
		return;
	l->rank = rank;
	l->cookie = v->rule_cookie;
	l->flags = v->flags;
	l->found = l->key;
}

static __always_inline void layers_probe_ports(struct policy_layers *l, __u32 identity, __u32 shapes)
{
	__u32 prefix;

	if (shapes & SHAPE_PREFIX(16))
		layers_probe(l, identity, l->protocol, 16);
	if (likely(!(shapes & SHAPE_PORTS & ~SHAPE_PREFIX(16))))
		return;
	/* A loop to the verifier too: what is found is in memory, so that every turn begins alike. */
#pragma clang loop unroll(disable)
	for (prefix = 15; prefix >= 1; prefix--)
		if (shapes & SHAPE_PREFIX(prefix))
			layers_probe(l, identity, l->protocol, prefix);
}

/*
 * All entries of one space that cover the packet, the most specific first, so
 * that of those that rank alike that one is reported. Shapes are those of the
 * entries for owner, an identity or a prefix, and for any.
 */
__noinline int policy_search_space(__u32 space, __u32 owner, __u32 by_owner, __u32 by_any)
{
	struct policy_layers *l = policy_layers();

	if (!l)
		return 0;
	l->key.space = space;
	layers_probe_ports(l, owner, by_owner);
	layers_probe_ports(l, 0, by_any);
	if (by_owner & SHAPE_PREFIX(0))
		layers_probe(l, owner, l->protocol, 0);
	if (by_any & SHAPE_PREFIX(0))
		layers_probe(l, 0, l->protocol, 0);
	if (by_owner & SHAPE_ANY_PROTOCOL)
		layers_probe(l, owner, 0, 0);
	if (by_any & SHAPE_ANY_PROTOCOL)
		layers_probe(l, 0, 0, 0);
	return 0;
}

#define TIER_UNDECIDED 1

/* Returns 0, a DROP(), or TIER_UNDECIDED. */
static __always_inline int policy_ask_tier(struct policy_layers *l, const struct policy_shape *shape,
					   __u32 identity, const __u32 tier, bool audit)
{
	const __u32 spaces = audit ? shape->spaces : shape->spaces & SPACES_IN_FORCE;
	const __u32 shapes = shape->other_shapes;

	l->rank = RANK_NONE;
	l->cookie = 0;
	if (tier == TIER_NORMAL)
		policy_search_space(TIER_NORMAL, identity, shape->identity_shapes,
				    shape->wildcard_shapes);
	else if (spaces & 1 << tier)
		policy_search_space(tier, identity, shapes, shapes);
	if (spaces & 1 << (tier | SPACE_BY_ADDRESS) && l->number)
		policy_search_space(tier | SPACE_BY_ADDRESS, l->number, shapes, 0);
	if (spaces & 1 << (tier | SPACE_AUDIT))
		policy_search_space(tier | SPACE_AUDIT, identity, shapes, shapes);
	if (spaces & 1 << (tier | SPACE_AUDIT | SPACE_BY_ADDRESS) && l->number)
		policy_search_space(tier | SPACE_AUDIT | SPACE_BY_ADDRESS, l->number, shapes, 0);

	if (l->rank != RANK_NONE && !(l->flags & POLICY_PASS))
		return l->flags & POLICY_DENY ? DROP(DROP_POLICY_DENY) : 0;
	l->rank = RANK_NONE;
	l->cookie = 0;
	if (tier == TIER_NORMAL && (shape->enforced || (audit && shape->audit & AUDIT_ENFORCED)))
		return DROP(DROP_POLICY);
	return TIER_UNDECIDED;
}

/*
 * What the subject's policies say in the direction, with those in audit mode or
 * without. The entry that decides is in policy_layers then. Returns 0 or a DROP().
 */
__noinline int policy_ask(const struct subject *row, __u32 direction, __u32 identity, bool audit)
{
	struct policy_layers *l = policy_layers();
	const struct policy_shape *shape;
	int ret;

	if (!row || !l)
		return DROP(DROP_POLICY_NOT_READY);
	shape = &row->shape[direction & 1];
	ret = policy_ask_tier(l, shape, identity, TIER_ADMIN, audit);
	if (ret != TIER_UNDECIDED)
		return ret;
	ret = policy_ask_tier(l, shape, identity, TIER_NORMAL, audit);
	if (ret != TIER_UNDECIDED)
		return ret;
	ret = policy_ask_tier(l, shape, identity, TIER_BASELINE, audit);
	return ret == TIER_UNDECIDED ? 0 : ret;
}

/*
 * The number of the longest prefix that holds the address of the flow's other
 * end: of who has the address there, not of a router that complains of the flow.
 */
__noinline __u32 policy_block(const struct packet *p)
{
	const __u32 *number;
	struct in6 addr;

	if (!p)
		return 0;
	/* Whether the subject sends it. */
	if ((p->direction == DIR_EGRESS) != !!(p->flags & PACKET_REPLY))
		addr = p->daddr;
	else
		addr = p->flags & PACKET_ALONE ? p->saddr : p->flow_saddr;
	if (p->family == FAMILY_IPV6) {
		struct ipcache6_lpm_key key = { .prefixlen = 128, .addr = addr };

		number = bpf_map_lookup_elem(&block6, &key);
	} else {
		struct ipcache_lpm_key key = { .prefixlen = 32, .addr = addr.w[0] };

		number = bpf_map_lookup_elem(&block4, &key);
	}
	return number ? *number : 0;
}

/* The entry that was found last has decided. */
static __always_inline void layers_count(struct __sk_buff *skb, const struct policy_layers *l)
{
	struct policy_value *v;

	if (l->rank == RANK_NONE)
		return;
	v = bpf_map_lookup_elem(&policy, &l->found);
	if (!v)
		return;
	__sync_fetch_and_add(&v->packets, 1);
	__sync_fetch_and_add(&v->bytes, skb->len);
}

/* As policy_verdict_plain(), with all spaces. */
__noinline int policy_verdict_layers(struct __sk_buff *skb, struct packet *p,
				     const struct subject *row, __u32 identity, __u32 port)
{
	struct policy_layers *l = policy_layers();
	const struct policy_shape *shape;
	__u32 direction, cookie;
	bool is_reported;
	int ret, would;

	if (!p || !row || !l)
		return DROP(DROP_POLICY_NOT_READY);
	direction = p->direction & 1;
	shape = &row->shape[direction];
	p->policy_revision = row->revision;
	__builtin_memset(&l->key, 0, sizeof(l->key));
	l->key.instance = row->instance;
	l->key.direction = direction;
	l->port = port;
	l->protocol = p->protocol;
	l->number = shape->spaces & SPACES_BY_ADDRESS ? policy_block(p) : 0;

	ret = policy_ask(row, direction, identity, false);
	layers_count(skb, l);
	cookie = l->cookie;
	p->rule_cookie = cookie;
	is_reported = shape->enforced || (l->rank != RANK_NONE && l->found.space & TIER_MASK);
	if (ret) {
		if (!(shape->audit & AUDIT_ALL))
			return ret;
		policy_report(skb, p, DROP_REASON(ret), VERDICT_AUDIT, DROP_LOCATION(ret));
		return 0;
	}
	if (shape->spaces & SPACES_AUDIT || shape->audit & AUDIT_ENFORCED) {
		would = policy_ask(row, direction, identity, true);
		if (would) {
			/* What a rule in force decides in another's stead is none of its packets. */
			if (l->found.space & SPACE_AUDIT)
				layers_count(skb, l);
			p->rule_cookie = l->cookie;
			policy_report(skb, p, DROP_REASON(would), VERDICT_AUDIT, DROP_LOCATION(would));
			p->rule_cookie = cookie;
			return 0;
		}
	}
	if (is_reported && (p->flags & PACKET_NEW || p->first_verdict))
		policy_report(skb, p, 0, VERDICT_ALLOW, LOCATION_HERE);
	return 0;
}

/*
 * The verdict on p's flow for the subject of row, in p->direction; p says with
 * PACKET_REPLY whether it goes against its flow. port is the responder's.
 * Returns 0 or a DROP(). Reports flows when a side admits them for the first
 * time, and what only audit mode lets pass.
 */
static __always_inline int policy_verdict(struct __sk_buff *skb, struct packet *p,
					  const struct subject *row, __u32 identity, __u32 port)
{
	if (likely(policy_is_plain(&row->shape[p->direction & 1])))
		return policy_verdict_plain(skb, p, row, identity, port);
	return policy_verdict_layers(skb, p, row, identity, port);
}
