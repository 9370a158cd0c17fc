/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The host's device: where the node's stack meets the pod network. */
#include "lib/common.h"
#include "lib/arp.h"
#include "lib/config.h"
#include "lib/deliver.h"
#include "lib/drop.h"
#include "lib/encap.h"
#include "lib/endpoint.h"
#include "lib/identity.h"
#include "lib/parse.h"

/*
 * To a local endpoint: by its device's egress, where to_container judges. The
 * mark tells it who sent the packet; the sender has no TTL to lose, or the
 * stack has taken it.
 */
static __always_inline int host_to_container(struct __sk_buff *skb, const struct packet *p,
					     const struct endpoint *dst)
{
	struct iphdr *ip = ipv4_header(skb);

	if (!ip)
		return DROP(DROP_INVALID);
	set_pod_macs((void *)ip - ETH_HLEN, dst);
	skb->mark = mark_of_identity(p->src_identity);
	return bpf_redirect(dst->ifindex, 0);
}

static __always_inline int from_host_ipv4(struct __sk_buff *skb, struct packet *p)
{
	const struct endpoint *endpoint;
	struct remote src, dst;
	struct iphdr *ip;
	int ret;

	ip = ipv4_header(skb);
	if (!ip)
		return DROP(DROP_INVALID);
	p->saddr = ip->saddr;
	p->daddr = ip->daddr;
	p->protocol = ip->protocol;
	ret = remote_find_sender(skb, &src, p->saddr, NULL);
	if (ret)
		return ret;
	p->src_identity = src.identity;

	endpoint = endpoint_by_ipv4(p->daddr);
	if (endpoint) {
		p->dst_identity = endpoint->identity;
		return host_to_container(skb, p, endpoint);
	}
	remote_find(&dst, p->daddr, NULL);
	p->dst_identity = dst.identity;
	if (dst.tunnel)
		return encap_to_node(skb, p, dst.tunnel);
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
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* fimbria_host, tc egress: what the node's stack sends into the pod network. */
SEC("tc")
int from_host(struct __sk_buff *skb)
{
	struct packet p = { .direction = DIR_EGRESS };
	int ret;

	if (likely(skb->protocol == bpf_htons(ETH_P_IP)))
		ret = from_host_ipv4(skb, &p);
	else if (skb->protocol == bpf_htons(ETH_P_ARP))
		ret = from_host_arp(skb, &p);
	else
		ret = DROP(DROP_UNKNOWN_L3);
	return unlikely(ret < 0) ? drop_packet(skb, &p, ret) : ret;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
