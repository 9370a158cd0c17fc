/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node itself: where its stack meets the pod network, and its devices meet the world. */
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
#include "lib/receive.h"

/* The addresses alone: all that matters of a packet that somebody else judges. */
static __always_inline int parse_addresses(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	if (v6) {
		struct ipv6_header *ip = ipv6_header(skb);

		if (!ip)
			return DROP(DROP_INVALID);
		p->family = FAMILY_IPV6;
		p->saddr = ip->saddr;
		p->daddr = ip->daddr;
		p->protocol = ip->next_header;
	} else {
		struct iphdr *ip = ipv4_header(skb);

		if (!ip)
			return DROP(DROP_INVALID);
		p->family = FAMILY_IPV4;
		p->saddr.w[0] = ip->saddr;
		p->daddr.w[0] = ip->daddr;
		p->protocol = ip->protocol;
	}
	return 0;
}

/*
 * To a local endpoint: by its device's egress, where to_container judges. The
 * mark tells it who sent the packet; the sender has no hop to lose, or the
 * stack has taken it.
 */
static __always_inline int host_to_container(struct __sk_buff *skb, const struct packet *p,
					     const struct endpoint *dst)
{
	void *frame = frame_start(skb, ETH_HLEN);

	if (!frame)
		return DROP(DROP_INVALID);
	set_pod_macs(frame, dst);
	skb->mark = mark_of_identity(p->src_identity);
	forward_note(FORWARD_REDIRECT, dst->ifindex, 0, 0);
	return bpf_redirect(dst->ifindex, 0);
}

static __always_inline int from_host_ip(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	const struct endpoint *dst;
	struct remote remote;
	int ret;

	ret = parse_addresses(skb, p, v6);
	if (ret)
		return ret;
	ret = find_sender(skb, p, v6);
	if (ret)
		return ret;
	p->dst_slot = endpoint_slot_of_address(&p->daddr, v6);
	dst = endpoint_at(p->dst_slot);
	if (dst) {
		p->dst_identity = dst->identity;
	} else {
		remote_find(&remote, &p->daddr, v6);
		p->dst_identity = remote.identity;
	}
	if (unlikely(!skb->ingress_ifindex && host_endpoint())) {
		ret = parse(skb, p, NULL, v6);
		if (ret)
			return ret;
		ret = v6 ? host_sends6(skb, p) : host_sends4(skb, p);
		if (ret)
			return ret;
		p->direction = DIR_EGRESS;
	}
	if (dst)
		return host_to_container(skb, p, dst);
	if (remote.target >= ROUTE_TUNNEL_MIN)
		return encap_to_node(skb, p, remote.target);
	/* Only pod CIDRs are routed here: nobody has that address. */
	return DROP(DROP_NO_LXC);
}

/* Any neighbour will do: what follows is taken off here and given its own addresses. */
static __always_inline int from_host_arp(struct __sk_buff *skb, struct packet *p)
{
	const __u8 mac[ETH_ALEN] = { 0x02, 0, 0, 0, 0, 0x01 };
	int ret = arp_answer(skb, p, mac, 0);

	if (ret)
		return ret;
	forward_note(FORWARD_INGRESS, skb->ifindex, 0, 0);
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* fimbria_host, tc egress: what the node's stack sends into the pod network. */
SEC("tc")
int from_host(struct __sk_buff *skb)
{
	struct packet p = { .direction = DIR_EGRESS };
	int ret;

	if (likely(skb->protocol == bpf_htons(ETH_P_IP)))
		ret = from_host_ip(skb, &p, false);
	else if (likely(skb->protocol == bpf_htons(ETH_P_IPV6)))
		ret = from_host_ip(skb, &p, true);
	else if (skb->protocol == bpf_htons(ETH_P_ARP))
		ret = from_host_arp(skb, &p);
	else
		ret = DROP(DROP_UNKNOWN_L3);
	return unlikely(ret < 0) ? drop_packet(skb, &p, ret) : ret;
}

/* A packet for the node itself from p->src_identity. */
static __always_inline int receive_for_host(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	int ret = v6 ? host_receives6(skb, p) : host_receives4(skb, p);

	if (ret)
		return ret;
	metrics_count(REASON_FORWARDED, DIR_INGRESS, skb->len);
	return TC_ACT_OK;
}

static __always_inline int to_host_ip(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	int ret;

	ret = parse(skb, p, NULL, v6);
	if (ret)
		return ret;
	p->dst_identity = ID_HOST;
	/* What from_container and from_overlay send here is marked. */
	if (mark_has_identity(skb->mark)) {
		p->src_identity = identity_of_mark(skb->mark);
	} else {
		ret = find_outside_sender(p, v6);
		if (ret)
			return ret;
	}
	return receive_for_host(skb, p, v6);
}

/* fimbria_host, tc ingress: what pods send to the node, while a policy selects it. */
SEC("tc")
int to_host(struct __sk_buff *skb)
{
	struct packet p = { .direction = DIR_INGRESS };
	int ret = TC_ACT_OK;

	/* from_host's own answers to ARP come by here. */
	if (!host_endpoint())
		return TC_ACT_OK;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		ret = to_host_ip(skb, &p, false);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		ret = is_discovery(skb, true) ? TC_ACT_OK : to_host_ip(skb, &p, true);
	return unlikely(ret < 0) ? drop_packet(skb, &p, ret) : ret;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
