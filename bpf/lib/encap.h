/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The overlay: VXLAN, with the sender's identity as the VNI. */
#pragma once

#include "common.h"
#include "config.h"
#include "drop.h"
#include "metrics.h"

#define TUNNEL_TTL 64

/* Sends the packet to a node. Returns an action or a DROP(). */
static __always_inline int encap_to_node(struct __sk_buff *skb, const struct packet *p,
					 __be32 node)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = p->src_identity,
		.remote_ipv4 = bpf_ntohl(node),
		.tunnel_ttl = TUNNEL_TTL,
	};

	if (!CONFIG(vxlan_ifindex))
		return DROP(DROP_NO_TUNNEL_ENDPOINT);
	/* IPv4 needs no outer UDP checksum; the inner one covers the payload. */
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX))
		return DROP(DROP_TUNNEL_KEY_FAILED);
	clear_metadata(skb);
	metrics_count(REASON_FORWARDED, p->direction, skb->len);
	return bpf_redirect(CONFIG(vxlan_ifindex), 0);
}

/*
 * The identity that a peer node put in. What it calls its host is to us a
 * remote node. Returns 0 or a DROP().
 */
static __always_inline int decap_identity(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_tunnel_key key;

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return DROP(DROP_NO_TUNNEL_KEY);
	if (key.tunnel_id == ID_UNKNOWN)
		return DROP(DROP_INVALID_IDENTITY);
	p->src_identity = key.tunnel_id == ID_HOST ? ID_REMOTE_NODE : key.tunnel_id;
	return 0;
}
