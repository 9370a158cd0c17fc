/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The overlay device: what other nodes send to this one. */
#include "lib/common.h"
#include "lib/config.h"
#include "lib/deliver.h"
#include "lib/drop.h"
#include "lib/encap.h"
#include "lib/endpoint.h"
#include "lib/flow.h"
#include "lib/identity.h"
#include "lib/parse.h"

static __always_inline int overlay_to_container(struct __sk_buff *skb, struct packet *p,
						struct flow_state *f, const struct endpoint *dst,
						const bool reply)
{
	struct remote src = { .identity = p->src_identity };
	int ret;

	ret = flow_judge(skb, p, f, dst, destination_side(reply), &src, reply);
	if (ret)
		return ret;
	ret = flow_commit(skb, p, f, reply);
	if (ret)
		return ret;
	return deliver_to_endpoint(skb, p, dst);
}

static __always_inline int from_overlay_ipv4(struct __sk_buff *skb, struct packet *p)
{
	const struct endpoint *dst;
	struct flow_state f;
	bool reply;
	int ret;

	ret = decap_identity(skb, p);
	if (ret)
		return ret;
	ret = parse_ipv4(skb, p, 0);
	if (ret)
		return ret;
	dst = endpoint_by_ipv4(p->daddr);
	if (unlikely(!dst)) {
		/* An overlay is no way to the world: the node itself or nobody. */
		if (!is_host_address(p->daddr))
			return DROP(DROP_NO_LXC);
		p->dst_identity = ID_HOST;
		return deliver_to_stack(skb, p);
	}
	p->endpoint_id = dst->endpoint_id;
	p->dst_identity = dst->identity;
	reply = flow_find(&f, p, NULL, dst);
	if (unlikely(f.is_new)) {
		ret = flow_may_start(p);
		if (ret)
			return ret;
	}
	return reply ? overlay_to_container(skb, p, &f, dst, true) :
		       overlay_to_container(skb, p, &f, dst, false);
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
		ret = from_overlay_ipv4(skb, &p);
	else
		ret = DROP(DROP_UNKNOWN_L3);
	return unlikely(ret < 0) ? drop_packet(skb, &p, ret) : ret;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
