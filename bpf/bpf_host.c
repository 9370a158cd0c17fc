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
#include "lib/nat.h"
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

/* Where a trace says that the node's packet goes. */
static __always_inline __u32 sent_point(const struct endpoint *dst, const struct remote *remote)
{
	if (dst)
		return TRACE_TO_ENDPOINT;
	return remote->target >= ROUTE_TUNNEL_MIN ? TRACE_TO_OVERLAY : TRACE_TO_NETWORK;
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
		ret = host_judge(skb, p, ret, sent_point(dst, &remote), v6);
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
	int ret = arp_answer(skb, p, mac, NULL);

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

/* A packet for the node itself from p->src_identity. parsed: what parse() said of it. */
static __always_inline int receive_for_host(struct __sk_buff *skb, struct packet *p, int parsed,
					    const bool v6)
{
	int ret = host_judge(skb, p, parsed, TRACE_TO_HOST, v6);

	if (ret)
		return ret;
	metrics_count(REASON_FORWARDED, DIR_INGRESS, skb->len);
	return TC_ACT_OK;
}

static __always_inline int to_host_ip(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	const int parsed = parse(skb, p, NULL, v6);
	int ret;

	p->dst_identity = ID_HOST;
	/* What from_container and from_overlay send here is marked. */
	if (mark_has_identity(skb->mark)) {
		p->src_identity = identity_of_mark(skb->mark);
	} else {
		ret = find_outside_sender(p, v6);
		if (ret)
			return ret;
	}
	return receive_for_host(skb, p, parsed, v6);
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

/* What other nodes' overlay sends to this one: the tunnel device takes it apart. */
static __always_inline bool is_overlay(struct __sk_buff *skb, const struct packet *p)
{
	const struct iphdr *ip;
	const __be16 *ports;

	if (!CONFIG(vxlan_ifindex) || p->protocol != IPPROTO_UDP)
		return false;
	ip = frame_start(skb, ETH_HLEN + sizeof(*ip) + L4_HEADER_MIN);
	if (!ip)
		return false;
	ip = (void *)ip + ETH_HLEN;
	ports = (void *)(ip + 1);
	/* Of a fragmented one every fragment is parsed. */
	return ip->ihl == 5 && !(ip->frag_off & bpf_htons(IP_MF | IP_OFFSET)) &&
	       ports[1] == bpf_htons(CONFIG(vxlan_port));
}

/* The same of what is parsed. */
static __always_inline bool is_overlay_port(const struct packet *p)
{
	return CONFIG(vxlan_ifindex) && p->protocol == IPPROTO_UDP &&
	       p->dport == bpf_htons(CONFIG(vxlan_port)) && !(p->flags & PACKET_RELATED);
}

/* For a local endpoint, from outside of the pod network. p is parsed. */
static __always_inline int network_to_container(struct __sk_buff *skb, struct packet *p,
						const bool v6)
{
	struct flow f;
	int ret;

	ret = find_outside_sender(p, v6);
	if (ret)
		return ret;
	ret = receive_established(skb, p, &f, v6);
	if (ret != RECEIVE_LOOK_CLOSER)
		return ret;
	p->dst_slot = endpoint_slot_of_address(&p->daddr, v6);
	if (!p->dst_slot)
		return DROP(DROP_NO_LXC);
	return receive(skb, p, !f.ct, v6);
}

/* For the node itself, which is under a policy. */
static __always_inline int network_to_policy(struct __sk_buff *skb, struct packet *p, int parsed,
					     const bool v6)
{
	int ret;

	p->dst_identity = ID_HOST;
	ret = find_outside_sender(p, v6);
	return ret ? ret : receive_for_host(skb, p, parsed, v6);
}

/* To one of the node's addresses: an answer to a masqueraded flow, or for the node itself. */
static __always_inline int network_to_host(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	const struct endpoint *host = host_endpoint();
	int parsed, ret;

	if (!v6 && is_overlay(skb, p))
		return TC_ACT_OK;
	if ((!CONFIG(masquerade) && !host) || is_discovery(skb, v6))
		return TC_ACT_OK;
	parsed = parse(skb, p, NULL, v6);
	if (!v6 && !parsed && is_overlay_port(p))
		return TC_ACT_OK;
	if (CONFIG(masquerade) && !parsed) {
		ret = nat_ingress(skb, p, v6);
		if (ret < 0)
			return ret;
		if (ret)
			return network_to_container(skb, p, v6);
	}
	return host ? network_to_policy(skb, p, parsed, v6) : TC_ACT_OK;
}

/*
 * To nobody that is known here: the node may have addresses that it was not
 * told of, and hears what is for many.
 */
static __always_inline int network_to_unknown(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	if (likely(!host_endpoint()) || is_discovery(skb, v6))
		return TC_ACT_OK;
	if (!(v6 ? is_for_node6(skb, p) : is_for_node4(skb, p)))
		return TC_ACT_OK;
	return network_to_policy(skb, p, parse(skb, p, NULL, v6), v6);
}

static __always_inline int from_netdev_ip(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	int ret;

	ret = parse_addresses(skb, p, v6);
	if (ret)
		return TC_ACT_OK;
	if (is_host_address(&p->daddr, v6))
		return network_to_host(skb, p, v6);
	if (!endpoint_slot_of_address(&p->daddr, v6))
		return network_to_unknown(skb, p, v6);
	ret = parse(skb, p, NULL, v6);
	return ret ? ret : network_to_container(skb, p, v6);
}

/* A device of the node, tc ingress: what comes in from the network. */
SEC("tc")
int from_netdev(struct __sk_buff *skb)
{
	struct packet p = { .direction = DIR_INGRESS };
	int ret = TC_ACT_OK;

	/* Nothing that came in on a wire has a mark to believe; its queue is the one that it was received by. */
	clear_metadata(skb);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		ret = from_netdev_ip(skb, &p, false);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		ret = from_netdev_ip(skb, &p, true);
	return unlikely(ret < 0) ? drop_packet(skb, &p, ret) : ret;
}

/* Whether what a pod sends there is to have the node's address. */
static __always_inline bool is_to_masquerade(const struct packet *p, const bool v6)
{
	struct in6 node = CONFIG(node_ipv6);
	struct remote remote;

	if (v6 && in6_is_zero(&node))
		return false;
	if (is_multicast(&p->daddr, v6) || nat_excluded(&p->daddr, v6))
		return false;
	remote_find(&remote, &p->daddr, v6);
	/* With native routing pods are known by their own addresses, to other nodes too. */
	return !is_workload(remote.identity) &&
	       (CONFIG(vxlan_ifindex) || remote.identity != ID_REMOTE_NODE);
}

/* Global functions for the stack: that of their caller is full. */
__noinline int is_masqueraded4(const struct packet *p)
{
	return p && is_to_masquerade(p, false);
}

__noinline int is_masqueraded6(const struct packet *p)
{
	return p && is_to_masquerade(p, true);
}

/* From a local pod, on its way out of the node. */
static __always_inline int container_to_network(struct __sk_buff *skb, struct packet *p,
						const bool v6)
{
	struct flow f;
	int ret;

	if (!(v6 ? is_masqueraded6(p) : is_masqueraded4(p)))
		return TC_ACT_OK;
	ret = parse(skb, p, NULL, v6);
	if (ret)
		return ret;
	/* Who reached the pod by its own address gets its answers from there. */
	flow_find(&f, p, v6);
	if (f.reply)
		return TC_ACT_OK;
	ret = nat_egress(skb, p, v6);
	return ret ? ret : TC_ACT_OK;
}

/* What a pod sends by a netkit device has come in by none. */
static __always_inline bool is_from_netkit_pod(const struct packet *p, const bool v6)
{
	const struct endpoint *src = endpoint_at(endpoint_slot_of_address(&p->saddr, v6));

	return src && src->flags & ENDPOINT_NETKIT;
}

/*
 * From the node itself. What it forwards for others is none of its policy,
 * unless its stack has given it the node's address: then the answer comes to that.
 */
static __always_inline int host_to_network(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	struct remote remote;
	int ret;

	if (likely(!host_endpoint()) || is_discovery(skb, v6))
		return TC_ACT_OK;
	if (skb->ingress_ifindex) {
		remote_find(&remote, &p->saddr, v6);
		if (remote.identity != ID_HOST)
			return TC_ACT_OK;
	} else if (is_from_netkit_pod(p, v6)) {
		return TC_ACT_OK;
	}
	ret = parse(skb, p, NULL, v6);
	p->src_identity = ID_HOST;
	remote_find(&remote, &p->daddr, v6);
	p->dst_identity = remote.identity;
	ret = host_judge(skb, p, ret, TRACE_TO_NETWORK, v6);
	if (ret)
		return ret;
	metrics_count(REASON_FORWARDED, DIR_EGRESS, skb->len);
	return TC_ACT_OK;
}

/* Whose packet is dropped: of the others nobody asks. */
static __always_inline void note_source(struct packet *p)
{
	const struct endpoint *src = endpoint_at(p->src_slot);

	if (!src)
		return;
	p->endpoint_id = src->endpoint_id;
	p->src_identity = src->identity;
}

static __always_inline int to_netdev_ip(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	int ret;

	if (parse_addresses(skb, p, v6))
		return TC_ACT_OK;
	if (CONFIG(masquerade)) {
		p->src_slot = endpoint_slot_of_address(&p->saddr, v6);
		if (p->src_slot) {
			ret = container_to_network(skb, p, v6);
			if (unlikely(ret < 0))
				note_source(p);
			return ret;
		}
	}
	return host_to_network(skb, p, v6);
}

/* A device of the node, tc egress: what leaves for the network. */
SEC("tc")
int to_netdev(struct __sk_buff *skb)
{
	struct packet p = { .direction = DIR_EGRESS };
	int ret;

	/* Judged before it was wrapped, and the node's by its outer address. */
	if (skb->mark == MARK_MAGIC_OVERLAY)
		return TC_ACT_OK;
	ret = edt_schedule(skb);
	if (unlikely(ret))
		return drop_packet(skb, &p, ret);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		ret = to_netdev_ip(skb, &p, false);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		ret = to_netdev_ip(skb, &p, true);
	return unlikely(ret < 0) ? drop_packet(skb, &p, ret) : ret;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
