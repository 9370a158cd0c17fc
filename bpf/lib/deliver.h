/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The last step towards a local endpoint or the host's stack. */
#pragma once

#include "common.h"
#include "config.h"
#include "drop.h"
#include "endpoint.h"
#include "identity.h"
#include "metrics.h"
#include "parse.h"

static __always_inline bool ttl_is_spent(const struct iphdr *ip)
{
	return ip->ttl <= 1;
}

/* RFC 1624, as the kernel's ip_decrease_ttl(): the checksum grows by what the TTL loses. */
static __always_inline void ttl_decrement(struct iphdr *ip)
{
	__u32 check = ip->check + bpf_htons(0x0100);

	ip->check = check + (check >= 0xffff);
	ip->ttl--;
}

/* The frame's addresses for the pod: both stand side by side in its row, word for word. */
static __always_inline void set_pod_macs(void *frame, const struct endpoint *ep)
{
	typedef __u32 __attribute__((may_alias)) word;
	const word *from = (const word *)ep->pod_mac;
	word *to = frame;

	_Static_assert(offsetof(struct endpoint, pod_mac) % sizeof(word) == 0 &&
			       offsetof(struct endpoint, host_mac) ==
				       offsetof(struct endpoint, pod_mac) + ETH_ALEN,
		       "MAC addresses are copied in words");
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
}

/* Hands the packet to the node's own stack, telling it who sent it. */
static __always_inline int deliver_to_stack(struct __sk_buff *skb, const struct packet *p)
{
	skb->mark = mark_of_identity(p->src_identity);
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	metrics_count(REASON_FORWARDED, p->direction, skb->len);
	return TC_ACT_OK;
}

/*
 * Puts the packet straight into the pod's namespace, past the queue of the
 * device on this side. Only from a tc ingress hook. A spent TTL goes to the
 * stack, which never forwards it but knows how to tell the sender.
 */
static __always_inline int deliver_to_endpoint(struct __sk_buff *skb, const struct packet *p,
					       const struct endpoint *ep)
{
	struct iphdr *ip = ipv4_header(skb);

	if (!ip)
		return DROP(DROP_INVALID);
	if (unlikely(ttl_is_spent(ip)))
		return deliver_to_stack(skb, p);
	ttl_decrement(ip);
	set_pod_macs((void *)ip - ETH_HLEN, ep);
	/* A frame that was addressed to another device would be ignored. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	clear_metadata(skb);
	metrics_count(REASON_FORWARDED, DIR_INGRESS, skb->len);
	return bpf_redirect_peer(ep->ifindex, 0);
}
