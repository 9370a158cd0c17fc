/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The verdict on a packet. Its flow is looked up once; each of its ends that
 * is a local endpoint must have judged it, under the policy in force: the
 * initiator its egress, the responder its ingress, whichever way the packet goes.
 */
#pragma once

#include "common.h"
#include "conntrack.h"
#include "drop.h"
#include "endpoint.h"
#include "identity.h"
#include "packet.h"
#include "parse.h"
#include "policy.h"

struct flow_state {
	struct ct_key key;
	struct ct_entry fresh; /* in use while the flow is new */
	struct ct_entry *entry;
	__u32 now;
	bool is_new;
};

/*
 * The side of a flow that the packet's source (or destination) is on. Here and
 * below reply is a constant: callers branch on it once, since older verifiers
 * take no variable offset into an entry that may be on the stack.
 */
static __always_inline __u32 source_side(const bool reply)
{
	return reply ? DIR_INGRESS : DIR_EGRESS;
}

static __always_inline __u32 destination_side(const bool reply)
{
	return reply ? DIR_EGRESS : DIR_INGRESS;
}

/* Whether the entry was made for an endpoint that had the address before. */
static __always_inline bool side_is_stale(const struct ct_side *side, const struct endpoint *ep)
{
	return ep && side->owner && side->owner != ep->endpoint_id;
}

/* Whether the packet continues the flow that the entry is about. */
static __always_inline bool flow_continues(const struct flow_state *f, const struct packet *p,
					   const struct endpoint *src, const struct endpoint *dst,
					   const bool reply)
{
	const struct ct_entry *ct = f->entry;

	return ct->expires >= f->now && !ct_restarts(ct, p, reply) &&
	       !side_is_stale(&ct->side[source_side(reply)], src) &&
	       !side_is_stale(&ct->side[destination_side(reply)], dst);
}

/*
 * Finds the packet's flow, or prepares a fresh entry for it. src and dst: the
 * local endpoints at its ends, NULL where there is none. Returns whether the
 * packet goes against the direction of its flow.
 */
static __always_inline bool flow_find(struct flow_state *f, struct packet *p,
				      const struct endpoint *src, const struct endpoint *dst)
{
	__u8 source = ct_key_init(&f->key, p);

	f->now = ct_now();
	f->is_new = false;
	f->entry = bpf_map_lookup_elem(&ct4, &f->key);
	if (likely(f->entry)) {
		if (f->entry->origin == source) {
			if (likely(flow_continues(f, p, src, dst, false)))
				return false;
		} else if (likely(flow_continues(f, p, src, dst, true))) {
			return true;
		}
	}
	__builtin_memset(&f->fresh, 0, sizeof(f->fresh));
	f->fresh.origin = source;
	f->fresh.created = f->now;
	f->entry = &f->fresh;
	f->is_new = true;
	p->flags |= PACKET_NEW;
	return false;
}

/* Whether such a packet may be the first of a flow. Returns 0 or a DROP(). */
static __always_inline int flow_may_start(const struct packet *p)
{
	return p->flags & (PACKET_RELATED | PACKET_ECHO_REPLY) ? DROP(DROP_UNKNOWN_CT) : 0;
}

/*
 * Has ep judged the flow, as direction says, under the policy in force? If not
 * it does so now. peer is who the packet says the other end is; only packets in
 * the flow's own direction are asked. For an answer, and for an ICMP error,
 * which may come from a router in between, the flow remembers who it was
 * judged for. Returns 0 or a DROP().
 */
static __always_inline int flow_judge(struct __sk_buff *skb, struct packet *p, struct flow_state *f,
				      const struct endpoint *ep, const __u32 direction,
				      const struct remote *peer, const bool reply)
{
	struct ct_side *side = &f->entry->side[direction];
	const bool remembered = (reply || p->flags & PACKET_RELATED) && side->owner;
	__u32 identity = remembered ? side->identity : peer->identity;
	__u32 generation = remembered ? side->ipcache_generation : peer->generation;
	const struct subject *row;
	__be16 port;
	int ret;

	p->direction = direction;
	p->endpoint_id = ep->endpoint_id;

	/* What runs on the node must reach its pods (probes), whatever their policy. */
	if (identity == ID_HOST && direction == DIR_INGRESS)
		goto judged;

	row = subject_row(ep->subject);
	if (unlikely(!row)) {
		if (identity == ID_HOST)
			return 0;
		p->rule_cookie = 0;
		p->policy_revision = 0;
		return DROP(DROP_POLICY_NOT_READY);
	}
	if (likely(side->owner && side->subject == ep->subject && side->epoch == row->epoch &&
		   side->identity == identity)) {
		if (unlikely(generation != side->ipcache_generation))
			side->ipcache_generation = generation;
		return 0;
	}

	if (p->protocol == IPPROTO_ICMP)
		port = bpf_htons(ICMP_ECHO);
	else
		port = reply ? p->flow.sport : p->flow.dport;
	ret = policy_verdict(skb, p, row, identity, port);
	if (ret)
		return ret;
	side->subject = ep->subject;
	side->epoch = row->epoch;
judged:
	if (side->owner != ep->endpoint_id || side->identity != identity ||
	    side->ipcache_generation != generation) {
		side->owner = ep->endpoint_id;
		side->identity = identity;
		side->ipcache_generation = generation;
	}
	return 0;
}

/* Accounts for an admitted packet; makes the entry of a new flow. Returns 0 or a DROP(). */
static __always_inline int flow_commit(struct __sk_buff *skb, const struct packet *p,
				       struct flow_state *f, const bool reply)
{
	if (p->flags & PACKET_RELATED)
		return 0;
	ct_update(f->entry, p, reply, f->now, skb->len);
	if (unlikely(f->is_new) && bpf_map_update_elem(&ct4, &f->key, &f->fresh, BPF_ANY))
		return DROP(DROP_CT_CREATE_FAILED);
	return 0;
}
