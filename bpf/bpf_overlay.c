/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The overlay device: what other nodes send to this one, and what this one sends to them. */
#include "lib/common.h"
#include "lib/config.h"
#include "lib/drop.h"
#include "lib/edt.h"
#include "lib/encap.h"
#include "lib/endpoint.h"
#include "lib/flow.h"
#include "lib/forward.h"
#include "lib/identity.h"
#include "lib/parse6.h"
#include "lib/receive.h"

static __always_inline int from_overlay_ip(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	struct flow f;
	int ret;

	ret = decap_identity(skb, p);
	if (unlikely(ret))
		return ret;
	ret = parse(skb, p, NULL, v6);
	if (unlikely(ret))
		return ret;
	if (unlikely(is_outside(p->src_identity)))
		find_outside_again(p, v6);
	ret = receive_established(skb, p, &f, v6);
	if (likely(ret != RECEIVE_LOOK_CLOSER))
		return ret;
	p->dst_slot = endpoint_slot_of_address(&p->daddr, v6);
	if (p->dst_slot)
		return receive(skb, p, !f.ct, v6);
	/* An overlay is no way to the world: the node itself or nobody. */
	if (!is_host_address(&p->daddr, v6))
		return DROP(DROP_NO_LXC);
	p->dst_identity = ID_HOST;
	return deliver_to_host(skb, p);
}

/* fimbria_vxlan, tc ingress. */
SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	struct packet p = { .direction = DIR_INGRESS };
	int ret;

	if (unlikely(skb->vlan_present))
		ret = DROP(DROP_UNSUPPORTED_L2);
	else if (likely(skb->protocol == bpf_htons(ETH_P_IP)))
		ret = from_overlay_ip(skb, &p, false);
	else if (likely(skb->protocol == bpf_htons(ETH_P_IPV6)))
		ret = from_overlay_ip(skb, &p, true);
	else
		ret = DROP(DROP_UNKNOWN_L3);
	return unlikely(ret < 0) ? drop_packet(skb, &p, ret) : ret;
}

/* fimbria_vxlan, tc egress: on its way to a peer, before the outer headers are there. */
SEC("tc")
int to_overlay(struct __sk_buff *skb)
{
	struct packet p = { .direction = DIR_EGRESS };
	struct bpf_tunnel_key key;
	int ret;

	/* What was routed here has no peer, and the device would lose it without a word. */
	if (unlikely(bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))) {
		ret = DROP(DROP_NO_TUNNEL_ENDPOINT);
		return drop_packet(skb, &p, ret);
	}
	ret = edt_schedule(skb);
	if (unlikely(ret))
		return drop_packet(skb, &p, ret);
	skb->mark = MARK_MAGIC_OVERLAY;
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
