/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * An endpoint's device on the host's side. One program serves them all; what
 * differs is in the row that the device's ifindex leads to.
 */
#include "lib/common.h"
#include "lib/arp.h"
#include "lib/config.h"
#include "lib/drop.h"
#include "lib/edt.h"
#include "lib/encap.h"
#include "lib/endpoint.h"
#include "lib/flow.h"
#include "lib/forward.h"
#include "lib/host.h"
#include "lib/identity.h"
#include "lib/nd.h"
#include "lib/parse6.h"

static __always_inline int send_on(struct __sk_buff *skb, struct packet *p,
				   const struct endpoint *src, const bool v6)
{
	const struct endpoint *dst;

	if (p->target == ROUTE_LOCAL && !CONFIG(endpoint_routes)) {
		dst = endpoint_at(p->dst_slot);
		if (unlikely(!dst))
			return DROP(DROP_NO_LXC);
		return deliver_to_endpoint(skb, p, dst, src, v6);
	}
	if (p->target >= ROUTE_TUNNEL_MIN) {
		if (unlikely(is_too_big(skb)))
			return deliver_to_stack(skb, p);
		edt_mark(skb, src, p->src_slot);
		return encap_to_node(skb, p, p->target);
	}
	if (p->target == ROUTE_HOST)
		return deliver_to_host(skb, p);
	if (p->target == ROUTE_LOCAL)
		return deliver_to_stack(skb, p);
	edt_mark(skb, src, p->src_slot);
	return deliver_to_network(skb, p, v6);
}

static __always_inline int from_container_ip(struct __sk_buff *skb, struct packet *p,
					     const struct endpoint *src, const bool v6)
{
	const struct ct_side *side, *other;
	struct flow f;
	int ret;

	ret = parse(skb, p, src, v6);
	if (unlikely(ret))
		return ret;
	/* An endpoint is no router: it can only complain of its own flows. */
	if (unlikely(!address_equal(&p->flow_saddr, &p->saddr, v6)))
		return DROP(DROP_INVALID_SIP);
	flow_find(&f, p, v6);
	if (likely(flow_goes_on(&f, p))) {
		side = source_side(&f);
		other = destination_side(&f);
		p->target = side->route >> 32;
		if (likely((__u32)side->route == p->generation && side->generation == p->generation &&
			   (p->target != ROUTE_LOCAL ||
			    (other->generation == p->generation &&
			     (f.reply || other->identity == p->src_identity))))) {
			p->dst_slot = other->slot;
			flow_count(&f, p, skb->len);
			return send_on(skb, p, src, v6);
		}
	}
	ret = v6 ? judge_sent6(skb, p, !f.ct) : judge_sent4(skb, p, !f.ct);
	return ret ? ret : send_on(skb, p, src, v6);
}

/* Gives the answer that stands in the frame to whom it is for, past what judges traffic. */
static __always_inline int answer(struct __sk_buff *skb, const struct endpoint *to)
{
	metrics_count(REASON_FORWARDED, DIR_EGRESS, skb->len);
	return redirect_to_pod(skb, to, to->flags & ENDPOINT_NETKIT);
}

static __always_inline int from_container_arp(struct __sk_buff *skb, struct packet *p,
					      const struct endpoint *src)
{
	int ret = arp_answer(skb, p, src->host_mac, &src->ipv4);

	return ret ? ret : answer(skb, src);
}

static __always_inline int from_container_ipv6(struct __sk_buff *skb, struct packet *p,
					       const struct endpoint *src)
{
	int ret;

	if (likely(!is_neighbour_solicitation(skb)))
		return from_container_ip(skb, p, src, true);
	ret = nd_answer(skb, p, src);
	return ret ? ret : answer(skb, src);
}

/* lxc, tc ingress, or a netkit device's peer: what the pod sends. */
SEC("tc")
int from_container(struct __sk_buff *skb)
{
	struct packet p = { .direction = DIR_EGRESS };
	const struct endpoint *src;
	int ret;

	clear_metadata(skb);
	p.src_slot = endpoint_slot_of_device(skb->ifindex);
	src = endpoint_at(p.src_slot);
	if (unlikely(!src)) {
		ret = DROP(DROP_NO_ENDPOINT_ROW);
		return drop_packet(skb, &p, ret);
	}
	p.endpoint_id = src->endpoint_id;
	p.src_identity = src->identity;
	if (unlikely(skb->vlan_present))
		ret = DROP(DROP_UNSUPPORTED_L2);
	else if (likely(skb->protocol == bpf_htons(ETH_P_IP)))
		ret = from_container_ip(skb, &p, src, false);
	else if (likely(skb->protocol == bpf_htons(ETH_P_IPV6)))
		ret = from_container_ipv6(skb, &p, src);
	else if (skb->protocol == bpf_htons(ETH_P_ARP))
		ret = from_container_arp(skb, &p, src);
	else
		ret = DROP(DROP_UNKNOWN_L3);
	return unlikely(ret < 0) ? drop_packet(skb, &p, ret) : ret;
}

static __always_inline int to_container_ip(struct __sk_buff *skb, struct packet *p,
					   const struct endpoint *dst, const bool v6)
{
	const struct ct_side *side;
	struct flow f;
	int ret;

	ret = parse(skb, p, NULL, v6);
	if (unlikely(ret))
		return ret;
	/* Zero stands for no address, which is nobody's either. */
	if (v6 ? !in6_equal(&p->daddr, &dst->ipv6) || in6_is_zero(&p->daddr) :
		 p->daddr.w[0] != dst->ipv4 || !p->daddr.w[0])
		return DROP(DROP_NO_LXC);
	ret = find_sender(skb, p, v6);
	if (ret)
		return ret;
	/* Elsewhere from_host has done that; with endpoint routes the node sends here directly. */
	if (CONFIG(endpoint_routes) && !skb->ingress_ifindex && host_endpoint()) {
		const __u8 flags = p->flags;

		ret = host_judge(skb, p, 0, TRACE_TO_ENDPOINT, v6);
		if (ret)
			return ret;
		/* The pod looks at it anew. */
		p->flags = flags;
		p->direction = DIR_INGRESS;
		p->endpoint_id = dst->endpoint_id;
		p->rule_cookie = 0;
		p->policy_revision = 0;
	}
	flow_find(&f, p, v6);
	if (likely(flow_goes_on(&f, p))) {
		side = destination_side(&f);
		if (likely(side->generation == p->generation && side->slot == p->dst_slot &&
			   (f.reply || side->identity == p->src_identity))) {
			flow_count(&f, p, skb->len);
			goto pass;
		}
	}
	ret = v6 ? judge_received6(skb, p, !f.ct) : judge_received4(skb, p, !f.ct);
	if (ret)
		return ret;
pass:
	metrics_count(REASON_FORWARDED, DIR_INGRESS, skb->len);
	return TC_ACT_OK;
}

/* lxc, tc egress: what the host's stack or from_host hands over for the pod. */
SEC("tc")
int to_container(struct __sk_buff *skb)
{
	struct packet p = { .direction = DIR_INGRESS };
	const struct endpoint *dst;
	int ret;

	if (skb->mark == MARK_JUDGED)
		return TC_ACT_OK;
	/* The node's own: what it hands on has been asked and answered elsewhere. */
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return TC_ACT_OK;
	if (skb->protocol == bpf_htons(ETH_P_IPV6) && !skb->ingress_ifindex &&
	    is_neighbour_discovery(skb))
		return TC_ACT_OK;
	p.dst_slot = endpoint_slot_of_device(skb->ifindex);
	dst = endpoint_at(p.dst_slot);
	if (unlikely(!dst)) {
		ret = DROP(DROP_NO_ENDPOINT_ROW);
		return drop_packet(skb, &p, ret);
	}
	p.endpoint_id = dst->endpoint_id;
	p.dst_identity = dst->identity;
	if (likely(skb->protocol == bpf_htons(ETH_P_IP)))
		ret = to_container_ip(skb, &p, dst, false);
	else if (likely(skb->protocol == bpf_htons(ETH_P_IPV6)))
		ret = to_container_ip(skb, &p, dst, true);
	else
		ret = DROP(DROP_UNKNOWN_L3);
	return unlikely(ret < 0) ? drop_packet(skb, &p, ret) : ret;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
