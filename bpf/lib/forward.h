/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The last step: to a local endpoint, the host's stack, the node itself or the network. */
#pragma once

#include "common.h"
#include "config.h"
#include "drop.h"
#include "edt.h"
#include "encap.h"
#include "endpoint.h"
#include "forward_note.h"
#include "identity.h"
#include "metrics.h"
#include "parse.h"

#define AF_INET 2
#define AF_INET6 10

/* The hop limit must be spent by no one but who can tell the sender: the stack. */
static __always_inline bool is_hop_limit_spent(const void *ip, const bool v6)
{
	return (v6 ? ((const struct ipv6_header *)ip)->hop_limit : ((const struct iphdr *)ip)->ttl) <= 1;
}

static __always_inline void hop_limit_decrement(void *header, const bool v6)
{
	if (v6) {
		((struct ipv6_header *)header)->hop_limit--;
	} else {
		struct iphdr *ip = header;
		/* RFC 1624: the checksum grows by what the TTL loses. */
		__u32 check = ip->check + bpf_htons(0x0100);

		ip->check = check + (check >= 0xffff);
		ip->ttl--;
	}
}

/* The packet's IP header, 14 bytes into its frame; or NULL. */
static __always_inline void *ip_header(struct __sk_buff *skb, const bool v6)
{
	return v6 ? (void *)ipv6_header(skb) : (void *)ipv4_header(skb);
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
	/* A frame that was addressed to another device would be ignored. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	metrics_count(REASON_FORWARDED, p->direction, skb->len);
	return TC_ACT_OK;
}

/* To the node itself: straight up, or past to_host while a policy selects the node. */
static __always_inline int deliver_to_host(struct __sk_buff *skb, const struct packet *p)
{
	const struct endpoint *host = host_endpoint();
	void *frame;

	if (likely(!host))
		return deliver_to_stack(skb, p);
	frame = frame_start(skb, ETH_HLEN);
	if (!frame)
		return DROP(DROP_INVALID);
	set_pod_macs(frame, host);
	skb->mark = mark_of_identity(p->src_identity);
	metrics_count(REASON_FORWARDED, p->direction, skb->len);
	forward_note(FORWARD_REDIRECT, CONFIG(net_ifindex), 0, 0);
	return bpf_redirect(CONFIG(net_ifindex), 0);
}

/*
 * Puts what has been judged straight into the pod's namespace, past the queue of
 * the device on this side. That needs a tc ingress hook; from where a netkit
 * device's program runs it takes the device, by to_container, which the mark tells.
 */
static __always_inline int redirect_to_pod(struct __sk_buff *skb, const struct endpoint *ep,
					   const bool from_netkit)
{
	if (from_netkit) {
		skb->mark = MARK_JUDGED;
		forward_note(FORWARD_REDIRECT, ep->ifindex, 0, 0);
		return bpf_redirect(ep->ifindex, 0);
	}
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	forward_note(FORWARD_PEER, ep->ifindex, 0, 0);
	return bpf_redirect_peer(ep->ifindex, 0);
}

/* To a local endpoint. src: the local endpoint that sent it, which counts as well, or NULL. */
static __always_inline int deliver_to_endpoint(struct __sk_buff *skb, const struct packet *p,
					       const struct endpoint *ep,
					       const struct endpoint *src, const bool v6)
{
	void *ip = ip_header(skb, v6);

	if (!ip)
		return DROP(DROP_INVALID);
	if (unlikely(is_hop_limit_spent(ip, v6)))
		return deliver_to_stack(skb, p);
	hop_limit_decrement(ip, v6);
	/* A device's sum over the whole packet is told; in IPv4 the header's checksum makes up for the change. */
	if (v6 && !src)
		bpf_csum_update(skb, ~(__u32)bpf_htons(1));
	set_pod_macs(ip - ETH_HLEN, ep);
	clear_metadata(skb);
	if (src)
		metrics_count_local(skb->len);
	else
		metrics_count(REASON_FORWARDED, DIR_INGRESS, skb->len);
	return redirect_to_pod(skb, ep, src && src->flags & ENDPOINT_NETKIT);
}

/*
 * Out of the node by its routes, past the stack if the FIB knows the way. What
 * that cannot do, to fragment or to complain, the stack can.
 */
static __always_inline int forward_by_fib(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	struct bpf_fib_lookup fib = {};
	struct bpf_redir_neigh nh;
	__u32 mtu = 0;
	void *ip;
	int ret;

	ip = ip_header(skb, v6);
	if (!ip)
		return DROP(DROP_INVALID);
	if (is_hop_limit_spent(ip, v6))
		return deliver_to_stack(skb, p);
	fib.ifindex = skb->ifindex;
	fib.l4_protocol = p->protocol;
	fib.sport = p->sport;
	fib.dport = p->dport;
	if (v6) {
		struct ipv6_header *h = ip;

		fib.family = AF_INET6;
		fib.tot_len = skb->gso_size ? 0 : bpf_ntohs(h->payload_length) + sizeof(*h);
		__builtin_memcpy(fib.ipv6_src, &p->saddr, sizeof(p->saddr));
		__builtin_memcpy(fib.ipv6_dst, &p->daddr, sizeof(p->daddr));
	} else {
		struct iphdr *h = ip;

		fib.family = AF_INET;
		fib.tos = h->tos;
		fib.tot_len = skb->gso_size ? 0 : bpf_ntohs(h->tot_len);
		fib.ipv4_src = p->saddr.w[0];
		fib.ipv4_dst = p->daddr.w[0];
	}
	ret = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (ret != BPF_FIB_LKUP_RET_SUCCESS && ret != BPF_FIB_LKUP_RET_NO_NEIGH)
		return deliver_to_stack(skb, p);
	/* The lookup has no eye for segments. */
	if (skb->gso_size && bpf_check_mtu(skb, fib.ifindex, &mtu, 0, BPF_MTU_CHK_SEGS))
		return deliver_to_stack(skb, p);
	ip = ip_header(skb, v6);
	if (!ip)
		return DROP(DROP_INVALID);
	hop_limit_decrement(ip, v6);
	nh.nh_family = fib.family;
	__builtin_memcpy(nh.ipv6_nh, fib.ipv6_dst, sizeof(nh.ipv6_nh));
	skb->mark = mark_of_identity(p->src_identity);
	metrics_count(REASON_FORWARDED, p->direction, skb->len);
	forward_note(FORWARD_NEIGH, fib.ifindex, 0, 0);
	return bpf_redirect_neigh(fib.ifindex, &nh, sizeof(nh), 0);
}

/* Global functions for their frames, which are large: that of the caller is full. */
__noinline int forward_by_fib4(struct __sk_buff *skb, struct packet *p)
{
	return p ? forward_by_fib(skb, p, false) : DROP(DROP_INVALID);
}

__noinline int forward_by_fib6(struct __sk_buff *skb, struct packet *p)
{
	return p ? forward_by_fib(skb, p, true) : DROP(DROP_INVALID);
}

static __always_inline int deliver_to_network(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	/* To a group or to all goes no further than the node, which the FIB alone does not say. */
	if (!CONFIG(host_routing) || is_multicast(&p->daddr, v6))
		return deliver_to_stack(skb, p);
	return v6 ? forward_by_fib6(skb, p) : forward_by_fib4(skb, p);
}
