/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The overlay: VXLAN, with the sender's identity as the VNI. */
#pragma once

#include "common.h"
#include "config.h"
#include "drop.h"
#include "forward_note.h"
#include "metrics.h"

#define TUNNEL_TTL 64

/*
 * Whether the packet has to be fragmented, or refused, before it fits into the
 * overlay. What the stack segments later counts by its segments.
 */
static __always_inline bool is_too_big(struct __sk_buff *skb)
{
	__u32 length = 0;

	if (likely(skb->len <= CONFIG(route_mtu) + ETH_HLEN))
		return false;
	if (!skb->gso_size)
		return true;
	return bpf_check_mtu(skb, CONFIG(vxlan_ifindex), &length, 0, BPF_MTU_CHK_SEGS) != 0;
}

/* Sends the packet to a node, whose address is in host order. Returns an action or a DROP(). */
static __always_inline int encap_to_node(struct __sk_buff *skb, const struct packet *p, __u32 node)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = p->src_identity,
		.remote_ipv4 = node,
		.tunnel_ttl = TUNNEL_TTL,
	};

	if (!CONFIG(vxlan_ifindex))
		return DROP(DROP_NO_TUNNEL_ENDPOINT);
	/* IPv4 needs no outer UDP checksum; the inner one covers the payload. */
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX))
		return DROP(DROP_TUNNEL_KEY_FAILED);
	skb->mark = 0;
	metrics_count(REASON_FORWARDED, p->direction, skb->len);
	forward_note(FORWARD_REDIRECT, CONFIG(vxlan_ifindex), p->src_identity, bpf_htonl(node));
	return bpf_redirect(CONFIG(vxlan_ifindex), 0);
}

/*
 * The identity that a peer node put in. What it calls its host is to us a
 * remote node. Returns 0 or a DROP().
 */
static __always_inline int decap_identity(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_tunnel_key key;

#ifdef FIMBRIA_TEST
	/* A test run has no tunnel metadata. */
	if (skb->cb[0])
		key.tunnel_id = skb->cb[0] - 1;
	else
#endif
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return DROP(DROP_NO_TUNNEL_KEY);
	if (key.tunnel_id == ID_UNKNOWN)
		return DROP(DROP_INVALID_IDENTITY);
	p->src_identity = key.tunnel_id == ID_HOST ? ID_REMOTE_NODE : key.tunnel_id;
	return 0;
}
