/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The verdict on a packet. Its flow is looked up once; each of its ends that
 * is a local endpoint must have judged it, under the policy in force: the
 * initiator its egress, the responder its ingress, whichever way the packet goes.
 *
 * A side whose generation is the node's needs no second look: programs check
 * that themselves (flow_goes_on()) and come here, to functions that are
 * verified on their own, with all other packets.
 */
#pragma once

#include "common.h"
#include "conntrack.h"
#include "drop.h"
#include "endpoint.h"
#include "identity.h"
#include "packet.h"
#include "parse.h"
#include "policy_spaces.h"

struct flow {
	struct ct_entry *ct;
	bool reply;
};

/* The entry of the flow whose key was made with this packet, NULL: there is none. */
static __always_inline void flow_entry(struct flow *f, const bool v6)
{
	struct ct_scratch *scratch = ct_scratch();

	f->ct = scratch ? ct_find(&scratch->key, v6) : NULL;
}

/* The entry in the making. */
static __always_inline void flow_fresh(struct flow *f)
{
	struct ct_scratch *scratch = ct_scratch();

	f->ct = scratch ? &scratch->entry : NULL;
}

/* Looks the packet's flow up, and on the clock if there is one. */
static __always_inline void flow_find(struct flow *f, struct packet *p, const bool v6)
{
	struct ct_scratch *scratch = ct_scratch();

	p->generation = node_generation();
	f->ct = NULL;
	f->reply = false;
	if (!scratch)
		return;
	if (ct_key_init(&scratch->key, p, v6))
		p->flags |= PACKET_SECOND;
	f->ct = ct_find(&scratch->key, v6);
	if (likely(f->ct)) {
		p->now = ct_now();
		f->reply = f->ct->origin != !!(p->flags & PACKET_SECOND);
	}
}

/*
 * Whether the flow goes on without anything that would change what is known of
 * it, so that the sides' generations are all there is to check.
 */
static __always_inline bool flow_goes_on(const struct flow *f, const struct packet *p)
{
	return f->ct && f->ct->expires >= p->now &&
	       !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) && !(p->flags & PACKET_RELATED);
}

/* The side that the packet's source is on, and the one of its destination. */
static __always_inline struct ct_side *source_side(const struct flow *f)
{
	return ct_side(f->ct, f->reply ? DIR_INGRESS : DIR_EGRESS);
}

static __always_inline struct ct_side *destination_side(const struct flow *f)
{
	return ct_side(f->ct, f->reply ? DIR_EGRESS : DIR_INGRESS);
}

static __always_inline void flow_count(const struct flow *f, const struct packet *p, __u32 bytes)
{
	ct_update(f->ct, p, f->reply, bytes);
}

/* Whether the side was made for an endpoint that had the address before. */
static __always_inline bool side_is_stale(const struct ct_side *side, const struct endpoint *ep)
{
	return ep && side->owner && side->owner != ep->endpoint_id;
}

/*
 * Settles whether the packet continues the entry that was found; otherwise it
 * starts a flow, and f->ct is NULL until a side has admitted it. src and dst:
 * the local endpoints at the packet's ends that are judged here, NULL where
 * there is none. Returns 0 or a DROP().
 */
static __always_inline int flow_start(struct flow *f, struct packet *p, const struct endpoint *src,
				      const struct endpoint *dst)
{
	if (f->ct && f->ct->expires >= p->now && !ct_restarts(f->ct, p, f->reply) &&
	    !side_is_stale(source_side(f), src) && !side_is_stale(destination_side(f), dst))
		return 0;
	if (p->flags & (PACKET_RELATED | PACKET_ECHO_REPLY))
		return DROP(DROP_UNKNOWN_CT);
	f->ct = NULL;
	f->reply = false;
	p->flags |= PACKET_NEW;
	return 0;
}

/* An empty entry for a flow that starts, once: it becomes the flow's with flow_commit(). */
static __always_inline bool flow_has_entry(struct flow *f)
{
	if (f->ct)
		return true;
	flow_fresh(f);
	if (!f->ct)
		return false;
	__builtin_memset(f->ct, 0, sizeof(*f->ct));
	return true;
}

/*
 * Where the verdict on a side is to be kept. What was cached of the side under
 * another generation is forgotten with it.
 */
static __always_inline void side_settle(struct ct_side *side, const struct packet *p)
{
	if (side->generation != p->generation) {
		side->route = 0;
		side->generation = p->generation;
	}
}

/*
 * Has ep, which is in slot, judged the flow in that direction under the policy
 * in force? If not it does so now. peer is who the packet says the other end
 * is; only packets in the flow's own direction are asked. For an answer, and
 * for an ICMP error, which may come from a router in between, the flow
 * remembers who it was judged for. Returns 0 or a DROP().
 */
static __always_inline int flow_judge(struct __sk_buff *skb, struct packet *p, struct flow *f,
				      const struct endpoint *ep, __u32 slot, __u32 direction,
				      __u32 peer)
{
	struct ct_side *side = NULL;
	__u32 identity = peer;
	const struct subject *row;
	__u32 epoch = 0;
	__u32 port;
	int ret;

	if (f->ct) {
		side = ct_side(f->ct, direction);
		if ((f->reply || p->flags & PACKET_RELATED) && side->owner)
			identity = side->identity;
	}
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
	epoch = row->epoch;
	if (side && side->owner && side->subject == ep->subject && side->epoch == epoch &&
	    side->identity == identity)
		goto judged;
	if (p->protocol == IPPROTO_ICMP)
		port = bpf_htons(ICMP_ECHO);
	else if (p->protocol == IPPROTO_ICMPV6)
		port = bpf_htons(ICMPV6_ECHO_REQUEST);
	else
		port = f->reply ? p->sport : p->dport;
	if (f->reply)
		p->flags |= PACKET_REPLY;
	p->first_verdict = !(side && side->owner) && !(p->flags & PACKET_RELATED);
	ret = policy_verdict(skb, p, row, identity, port);
	if (ret)
		return ret;
judged:
	if (p->flags & PACKET_RELATED)
		return 0;
	if (!flow_has_entry(f))
		return DROP(DROP_CT_CREATE_FAILED);
	side = ct_side(f->ct, direction);
	side->owner = ep->endpoint_id;
	side->subject = ep->subject;
	side->epoch = epoch;
	side->identity = identity;
	side->slot = slot;
	side_settle(side, p);
	return 0;
}

static __always_inline void flow_trace(struct __sk_buff *skb, const struct packet *p, __u8 point,
				       __u32 location)
{
	struct event_about about = {
		.location = location,
		.kind = EVENT_TRACE,
		.verdict = VERDICT_ALLOW,
		.point = point,
	};

	if (p->flags & PACKET_RELATED)
		about.state = FLOW_RELATED;
	else if (p->flags & PACKET_NEW)
		about.state = FLOW_NEW;
	else if (p->tcp_flags & (TCP_FIN | TCP_RST))
		about.state = FLOW_CLOSING;
	else
		return;
	event_emit(skb, p, &about);
}

/*
 * Accounts for an admitted packet; makes the entry of a new flow. point: where
 * the packet goes, TRACE_*. Returns 0 or a DROP().
 */
static __always_inline int flow_commit(struct __sk_buff *skb, struct packet *p, struct flow *f,
				       __u8 point, const bool v6)
{
	struct ct_scratch *scratch;
	int failed;

	if (unlikely(node_flags() & NODE_TRACE))
		flow_trace(skb, p, point, LOCATION_HERE);
	if (p->flags & PACKET_RELATED)
		return 0;
	if (!flow_has_entry(f))
		return DROP(DROP_CT_CREATE_FAILED);
	if (p->flags & PACKET_NEW)
		p->now = ct_now();
	ct_update(f->ct, p, f->reply, skb->len);
	if (!(p->flags & PACKET_NEW))
		return 0;
	f->ct->origin = !!(p->flags & PACKET_SECOND);
	f->ct->created = p->now;
	scratch = ct_scratch();
	if (!scratch)
		return DROP(DROP_CT_CREATE_FAILED);
	if (v6)
		failed = bpf_map_update_elem(&ct6, &scratch->key.v6, f->ct, BPF_ANY);
	else
		failed = bpf_map_update_elem(&ct4, &scratch->key.v4, f->ct, BPF_ANY);
	return failed ? DROP(DROP_CT_CREATE_FAILED) : 0;
}

/* As flow_find() for a packet whose caller has done that, and may know that there is no entry. */
static __always_inline void flow_find_again(struct flow *f, struct packet *p, bool is_new,
					    const bool v6)
{
	f->ct = NULL;
	f->reply = false;
	if (is_new)
		return;
	flow_entry(f, v6);
	f->reply = f->ct && f->ct->origin != !!(p->flags & PACKET_SECOND);
}

static __always_inline __u8 trace_point(__u32 target)
{
	if (target >= ROUTE_TUNNEL_MIN)
		return TRACE_TO_OVERLAY;
	if (target == ROUTE_LOCAL)
		return TRACE_TO_ENDPOINT;
	return target == ROUTE_HOST ? TRACE_TO_HOST : TRACE_TO_NETWORK;
}

/*
 * A packet that the endpoint in p->src_slot sends: finds its target and, for a
 * local endpoint, p->dst_slot; both ends that are here judge it. 0 or a DROP().
 */
static __always_inline int judge_sent(struct __sk_buff *skb, struct packet *p, bool is_new,
				      const bool v6)
{
	const struct endpoint *src = endpoint_at(p->src_slot), *dst;
	struct ct_side *side;
	struct flow f;
	int ret;

	if (!src)
		return DROP(DROP_NO_ENDPOINT_ROW);
	flow_find_again(&f, p, is_new, v6);
	p->dst_slot = endpoint_slot_of_address(&p->daddr, v6);
	dst = endpoint_at(p->dst_slot);
	if (dst) {
		p->target = ROUTE_LOCAL;
		p->dst_identity = dst->identity;
	} else {
		struct remote r;

		remote_find(&r, &p->daddr, v6);
		p->target = r.target;
		p->dst_identity = r.identity;
	}
	/* With endpoint routes the other end judges where the stack hands over. */
	if (CONFIG(endpoint_routes))
		dst = NULL;
	ret = flow_start(&f, p, src, dst);
	if (ret)
		return ret;
	ret = flow_judge(skb, p, &f, src, p->src_slot, f.reply ? DIR_INGRESS : DIR_EGRESS,
			 p->dst_identity);
	if (ret)
		return ret;
	if (f.ct && !(p->flags & PACKET_RELATED)) {
		side = source_side(&f);
		/* Judged under this generation, or not to be remembered. */
		if (side->generation == p->generation)
			side->route = (__u64)p->target << 32 | p->generation;
	}
	if (dst) {
		ret = flow_judge(skb, p, &f, dst, p->dst_slot,
				 f.reply ? DIR_EGRESS : DIR_INGRESS, p->src_identity);
		if (ret)
			return ret;
	}
	p->direction = DIR_EGRESS;
	return flow_commit(skb, p, &f, trace_point(p->target), v6);
}

__noinline int judge_sent4(struct __sk_buff *skb, struct packet *p, bool is_new)
{
	return p ? judge_sent(skb, p, is_new, false) : DROP(DROP_INVALID);
}

__noinline int judge_sent6(struct __sk_buff *skb, struct packet *p, bool is_new)
{
	return p ? judge_sent(skb, p, is_new, true) : DROP(DROP_INVALID);
}

/*
 * A packet from p->src_identity to the endpoint in p->dst_slot, which judges it.
 * point: TRACE_*. Returns 0 or a DROP().
 */
static __always_inline int judge_received(struct __sk_buff *skb, struct packet *p, bool is_new,
					  const bool v6)
{
	const struct endpoint *dst = endpoint_at(p->dst_slot);
	struct flow f;
	int ret;

	if (!dst)
		return DROP(DROP_NO_ENDPOINT_ROW);
	p->dst_identity = dst->identity;
	flow_find_again(&f, p, is_new, v6);
	ret = flow_start(&f, p, NULL, dst);
	if (ret)
		return ret;
	ret = flow_judge(skb, p, &f, dst, p->dst_slot, f.reply ? DIR_EGRESS : DIR_INGRESS,
			 p->src_identity);
	if (ret)
		return ret;
	p->direction = DIR_INGRESS;
	return flow_commit(skb, p, &f,
			   p->dst_slot == HOST_SLOT ? TRACE_TO_HOST : TRACE_TO_ENDPOINT, v6);
}

__noinline int judge_received4(struct __sk_buff *skb, struct packet *p, bool is_new)
{
	return p ? judge_received(skb, p, is_new, false) : DROP(DROP_INVALID);
}

__noinline int judge_received6(struct __sk_buff *skb, struct packet *p, bool is_new)
{
	return p ? judge_received(skb, p, is_new, true) : DROP(DROP_INVALID);
}
