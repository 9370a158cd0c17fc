/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Neighbour discovery: as with ARP, whatever an endpoint asks for is behind its device. */
#pragma once

#include "common.h"
#include "drop.h"
#include "endpoint.h"
#include "packet.h"
#include "parse.h"

#define ND_OPTION_TARGET_MAC 2
#define ND_OPTION_LENGTH 8
/* Router, solicited, override. */
#define ND_FLAGS bpf_htonl(0xe0000000)
#define ND_HOP_LIMIT 255

struct nd_message {
	struct ipv6_header ip;
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags; /* of an advertisement */
	struct in6 target;
	__u8 option;
	__u8 option_length; /* in eights of bytes */
	__u8 option_mac[ETH_ALEN];
};
ASSERT_SIZE(struct nd_message, 72);

#define ND_MESSAGE_LENGTH (sizeof(struct nd_message) - sizeof(struct ipv6_header))

/* Whether the frame is a solicitation, which has no extension headers in front. */
static __always_inline bool is_neighbour_solicitation(struct __sk_buff *skb)
{
	struct ipv6_header *ip = frame_start(skb, ETH_HLEN + sizeof(*ip) + L4_HEADER_MIN);

	if (!ip)
		return false;
	ip = (void *)ip + ETH_HLEN;
	return ip->next_header == IPPROTO_ICMPV6 &&
	       *(__u8 *)(ip + 1) == ICMPV6_NEIGHBOUR_SOLICITATION;
}

/* Any discovery message of the node's own: it asks its pods like any neighbour. */
static __always_inline bool is_neighbour_discovery(struct __sk_buff *skb)
{
	struct ipv6_header *ip = frame_start(skb, ETH_HLEN + sizeof(*ip) + L4_HEADER_MIN);
	__u8 type;

	if (!ip)
		return false;
	ip = (void *)ip + ETH_HLEN;
	type = *(__u8 *)(ip + 1);
	return ip->next_header == IPPROTO_ICMPV6 && type >= ICMPV6_ROUTER_SOLICITATION &&
	       type <= ICMPV6_REDIRECT;
}

/*
 * Turns a solicitation from the endpoint into the advertisement that names its
 * device. Returns 0 with the answer in skb, or a DROP().
 */
__noinline int nd_answer(struct __sk_buff *skb, struct packet *p, const struct endpoint *ep)
{
	const __u32 need = ETH_HLEN + sizeof(struct nd_message);
	struct nd_message *nd;
	struct ethhdr *eth;
	struct in6 target;
	__u32 length;
	__s64 sum;

	if (!p || !ep)
		return DROP(DROP_INVALID);
	nd = frame_start(skb, ETH_HLEN + offsetof(struct nd_message, option));
	if (!nd)
		return DROP(DROP_INVALID);
	nd = (void *)nd + ETH_HLEN;
	length = bpf_ntohs(nd->ip.payload_length);
	p->family = FAMILY_IPV6;
	p->saddr = nd->ip.saddr;
	p->daddr = nd->ip.daddr;
	p->flow_saddr = nd->ip.saddr;
	p->protocol = IPPROTO_ICMPV6;
	target = nd->target;
	if ((nd->ip.version_class_label & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) ||
	    length < ND_MESSAGE_LENGTH - ND_OPTION_LENGTH ||
	    ETH_HLEN + sizeof(nd->ip) + length > skb->len || nd->code ||
	    nd->ip.hop_limit != ND_HOP_LIMIT)
		return DROP(DROP_INVALID);
	/* The unspecified address asks whether an address is taken (RFC 4862). */
	if (in6_is_zero(&p->saddr))
		return DROP(DROP_ND_IGNORED);
	if (!in6_equal(&p->saddr, &ep->ipv6) && !is_link_local(&p->saddr))
		return DROP(DROP_INVALID_SIP);
	/* Nobody else has the asker's own address. */
	if (in6_equal(&target, &ep->ipv6) || in6_equal(&target, &p->saddr))
		return DROP(DROP_ND_IGNORED);

	/* The option that names the asker's MAC may be missing or another: the answer has room for one. */
	if (skb->len != need && bpf_skb_change_tail(skb, need, 0))
		return DROP(DROP_INVALID);
	eth = frame_start(skb, need);
	if (!eth)
		return DROP(DROP_INVALID);
	nd = (void *)(eth + 1);
	__builtin_memcpy(eth->h_dest, ep->pod_mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, ep->host_mac, ETH_ALEN);
	nd->ip.payload_length = bpf_htons(ND_MESSAGE_LENGTH);
	nd->ip.daddr = p->saddr;
	nd->ip.saddr = target;
	nd->target = target;
	nd->type = ICMPV6_NEIGHBOUR_ADVERTISEMENT;
	nd->code = 0;
	nd->checksum = 0;
	nd->flags = ND_FLAGS;
	nd->option = ND_OPTION_TARGET_MAC;
	nd->option_length = 1;
	__builtin_memcpy(nd->option_mac, ep->host_mac, ETH_ALEN);

	/* Pseudo header: both addresses, the length and the protocol; they are as long as the message needs. */
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&nd->ip.saddr, 2 * sizeof(struct in6) + ND_MESSAGE_LENGTH,
			    bpf_htonl(ND_MESSAGE_LENGTH) + bpf_htonl(IPPROTO_ICMPV6));
	if (sum < 0)
		return DROP(DROP_CSUM_L4);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	nd->checksum = ~sum;
	return 0;
}
