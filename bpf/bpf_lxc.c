/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * An endpoint's device on the host's side. One program serves them all; what
 * differs is in the row that the device's ifindex leads to.
 */
#include "lib/common.h"
#include "lib/arp.h"
#include "lib/config.h"
#include "lib/deliver.h"
#include "lib/drop.h"
#include "lib/encap.h"
#include "lib/endpoint.h"
#include "lib/flow.h"
#include "lib/identity.h"
#include "lib/parse.h"

/* Both ends local: judged by both in this one pass. */
static __always_inline int container_to_container(struct __sk_buff *skb, struct packet *p,
						  struct flow_state *f, const struct endpoint *src,
						  const struct endpoint *dst, const bool reply)
{
	struct remote src_peer = { .identity = src->identity };
	struct remote dst_peer = { .identity = dst->identity };
	int ret;

	p->dst_identity = dst->identity;
	ret = flow_judge(skb, p, f, src, source_side(reply), &dst_peer, reply);
	if (ret)
		return ret;
	ret = flow_judge(skb, p, f, dst, destination_side(reply), &src_peer, reply);
	if (ret)
		return ret;
	ret = flow_commit(skb, p, f, reply);
	if (ret)
		return ret;
	metrics_count(REASON_FORWARDED, DIR_EGRESS, skb->len);
	return deliver_to_endpoint(skb, p, dst);
}

static __always_inline int container_to_remote(struct __sk_buff *skb, struct packet *p,
					       struct flow_state *f, const struct endpoint *src,
					       const bool reply)
{
	struct remote dst;
	int ret;

	remote_find(&dst, p->daddr, &f->entry->side[source_side(reply)]);
	p->dst_identity = dst.identity;
	ret = flow_judge(skb, p, f, src, source_side(reply), &dst, reply);
	if (ret)
		return ret;
	ret = flow_commit(skb, p, f, reply);
	if (ret)
		return ret;
	p->direction = DIR_EGRESS;
	if (dst.tunnel)
		return encap_to_node(skb, p, dst.tunnel);
	return deliver_to_stack(skb, p);
}

static __always_inline int from_container_ipv4(struct __sk_buff *skb, struct packet *p,
					       const struct endpoint *src)
{
	const struct endpoint *dst;
	struct flow_state f;
	bool reply;
	int ret;

	ret = parse_ipv4(skb, p, src->ipv4);
	if (ret)
		return ret;
	/* An endpoint is no router: it can only complain of its own flows. */
	if (unlikely(p->flow.saddr != p->saddr))
		return DROP(DROP_INVALID_SIP);
	dst = endpoint_by_ipv4(p->daddr);
	reply = flow_find(&f, p, src, dst);
	if (unlikely(f.is_new)) {
		ret = flow_may_start(p);
		if (ret)
			return ret;
	}
	if (dst)
		return reply ? container_to_container(skb, p, &f, src, dst, true) :
			       container_to_container(skb, p, &f, src, dst, false);
	return reply ? container_to_remote(skb, p, &f, src, true) :
		       container_to_remote(skb, p, &f, src, false);
}

static __always_inline int from_container_arp(struct __sk_buff *skb, struct packet *p,
					      const struct endpoint *src)
{
	int ret = arp_answer(skb, p, src->host_mac, src->ipv4);

	if (ret)
		return ret;
	metrics_count(REASON_FORWARDED, DIR_EGRESS, skb->len);
	return bpf_redirect(skb->ifindex, 0);
}

/* lxc, tc ingress: what the pod sends. */
SEC("tc")
int from_container(struct __sk_buff *skb)
{
	const struct endpoint *src = endpoint_by_device(skb->ifindex);
	struct packet p = { .direction = DIR_EGRESS };
	int ret;

	if (unlikely(!src)) {
		ret = DROP(DROP_NO_ENDPOINT_ROW);
		return drop_packet(skb, &p, ret);
	}
	p.endpoint_id = src->endpoint_id;
	p.src_identity = src->identity;
	if (unlikely(skb->vlan_present))
		ret = DROP(DROP_UNSUPPORTED_L2);
	else if (likely(skb->protocol == bpf_htons(ETH_P_IP)))
		ret = from_container_ipv4(skb, &p, src);
	else if (skb->protocol == bpf_htons(ETH_P_ARP))
		ret = from_container_arp(skb, &p, src);
	else
		ret = DROP(DROP_UNKNOWN_L3);
	return unlikely(ret < 0) ? drop_packet(skb, &p, ret) : ret;
}

static __always_inline int stack_to_container(struct __sk_buff *skb, struct packet *p,
					      struct flow_state *f, const struct endpoint *dst,
					      const bool reply)
{
	struct remote src;
	int ret;

	ret = remote_find_sender(skb, &src, p->saddr, &f->entry->side[destination_side(reply)]);
	if (ret)
		return ret;
	p->src_identity = src.identity;
	if (unlikely(f->is_new)) {
		ret = flow_may_start(p);
		if (ret)
			return ret;
	}
	ret = flow_judge(skb, p, f, dst, destination_side(reply), &src, reply);
	if (ret)
		return ret;
	ret = flow_commit(skb, p, f, reply);
	if (ret)
		return ret;
	metrics_count(REASON_FORWARDED, DIR_INGRESS, skb->len);
	return TC_ACT_OK;
}

static __always_inline int to_container_ipv4(struct __sk_buff *skb, struct packet *p,
					     const struct endpoint *dst)
{
	struct flow_state f;
	int ret;

	ret = parse_ipv4(skb, p, 0);
	if (ret)
		return ret;
	if (p->daddr != dst->ipv4)
		return DROP(DROP_NO_LXC);
	return flow_find(&f, p, NULL, dst) ? stack_to_container(skb, p, &f, dst, true) :
					     stack_to_container(skb, p, &f, dst, false);
}

/* lxc, tc egress: what the host's stack or from_host hands over for the pod. */
SEC("tc")
int to_container(struct __sk_buff *skb)
{
	const struct endpoint *dst = endpoint_by_device(skb->ifindex);
	struct packet p = { .direction = DIR_INGRESS };
	int ret;

	/* from_container's answers pass here too. */
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return TC_ACT_OK;
	if (unlikely(!dst)) {
		ret = DROP(DROP_NO_ENDPOINT_ROW);
		return drop_packet(skb, &p, ret);
	}
	p.endpoint_id = dst->endpoint_id;
	p.dst_identity = dst->identity;
	if (likely(skb->protocol == bpf_htons(ETH_P_IP)))
		ret = to_container_ipv4(skb, &p, dst);
	else
		ret = DROP(DROP_UNKNOWN_L3);
	return unlikely(ret < 0) ? drop_packet(skb, &p, ret) : ret;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
