/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What comes into the node for a local endpoint, from the overlay or from the network. */
#pragma once

#include "common.h"
#include "endpoint.h"
#include "flow.h"
#include "forward.h"
#include "identity.h"
#include "packet.h"

static __always_inline int hand_over(struct __sk_buff *skb, const struct packet *p, const bool v6)
{
	const struct endpoint *dst = endpoint_at(p->dst_slot);

	if (unlikely(!dst))
		return DROP(DROP_NO_LXC);
	if (CONFIG(endpoint_routes))
		return deliver_to_stack(skb, p);
	return deliver_to_endpoint(skb, p, dst, NULL, v6);
}

/*
 * The part of an established flow: delivers the packet and returns its action
 * or a DROP(), or 1 + the highest action when more has to be looked at. The
 * sender's identity is known.
 */
#define RECEIVE_LOOK_CLOSER 100

static __always_inline int receive_established(struct __sk_buff *skb, struct packet *p,
					       struct flow *f, const bool v6)
{
	const struct ct_side *side;

	flow_find(f, p, v6);
	if (unlikely(!flow_goes_on(f, p)))
		return RECEIVE_LOOK_CLOSER;
	side = destination_side(f);
	/* The host endpoint is not delivered to, and judges elsewhere. */
	if (unlikely(side->generation != p->generation || side->slot == HOST_SLOT ||
		     !(f->reply || side->identity == p->src_identity)))
		return RECEIVE_LOOK_CLOSER;
	p->dst_slot = side->slot;
	flow_count(f, p, skb->len);
	return hand_over(skb, p, v6);
}

/* To the local endpoint in p->dst_slot, which judges first. Returns an action or a DROP(). */
static __always_inline int receive(struct __sk_buff *skb, struct packet *p, bool is_new,
				   const bool v6)
{
	int ret = v6 ? judge_received6(skb, p, is_new) : judge_received4(skb, p, is_new);

	return ret ? ret : hand_over(skb, p, v6);
}
