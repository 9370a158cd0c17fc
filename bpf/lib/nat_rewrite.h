/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * One end of a flow given another address and port, in the frame: the headers,
 * what an ICMP error quotes of them, and every checksum that covers them.
 *
 * Checksums are never computed anew but moved by the difference (RFC 1624), so
 * that one that was wrong stays wrong, and so that it does not matter how much
 * of the packet is here: a first fragment, the head of a GSO packet, or a
 * checksum that a device is to finish (then the helpers touch only what covers
 * the pseudo header: BPF_F_PSEUDO_HDR).
 */
#pragma once

#include "common.h"
#include "drop.h"
#include "nat_map.h"
#include "packet.h"
#include "parse.h"

struct nat_change {
	struct in6 from; /* the address */
	struct in6 to;
	__be16 port_from; /* the port, or the identifier of an ICMP echo */
	__be16 port_to;
	__u8 source; /* 1: the packet's source changes, 0: its destination */
	__u8 pad[3];
};
ASSERT_SIZE(struct nat_change, 40);

#define NAT_TCP_CHECKSUM 16
#define NAT_UDP_CHECKSUM 6
#define NAT_ICMP_CHECKSUM 2
#define NAT_ICMP_ECHO_ID 4
#define NAT_IPV6_HEADER 40

/* What the change of the address adds to a sum over it. */
static __always_inline __u32 nat_address_difference(const struct nat_change *c, const bool v6)
{
	__u64 sum = (__u64)(__u32)~c->from.w[0] + c->to.w[0];
	int i;

	if (v6)
		for (i = 1; i < 4; i++)
			sum += (__u64)(__u32)~c->from.w[i] + c->to.w[i];
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (__u32)sum + (__u32)(sum >> 32);
}

static __always_inline __u32 nat_word_difference(__be16 from, __be16 to)
{
	return (__u32)(__u16)~from + to;
}

/* A checksum of data that has changed by these differences. */
static __always_inline __u16 nat_checksum(__u16 check, __u32 difference, __u32 another)
{
	__u64 sum = (__u64)(__u16)~check + difference + another;

	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/*
 * The port and the checksum of the transport header. SCTP has neither: its
 * CRC32c does not cover addresses and its port stays as it is.
 */
static __always_inline int nat_rewrite_l4(struct __sk_buff *skb, const struct packet *p,
					  const struct nat_change *c, const bool v6)
{
	/* Where it is without options or extension headers: there it is written to directly. */
	const __u32 plain = ETH_HLEN + (v6 ? sizeof(struct ipv6_header) : sizeof(struct iphdr));
	__u32 port = c->source ? 0 : sizeof(__be16);
	__u32 check = p->l4_offset;
	__u64 flags = BPF_F_PSEUDO_HDR;
	void *frame;
	__u16 sum;

	if (p->protocol == IPPROTO_TCP) {
		check += NAT_TCP_CHECKSUM;
	} else if (p->protocol == IPPROTO_UDP) {
		check += NAT_UDP_CHECKSUM;
		/* 0 means that there is none and stays; a sum that comes to 0 is sent as 0xffff. */
		flags |= BPF_F_MARK_MANGLED_0;
	} else if (nat_is_icmp(p, v6)) {
		check += NAT_ICMP_CHECKSUM;
		port = NAT_ICMP_ECHO_ID;
		/* Unlike ICMPv6, ICMP's does not cover a pseudo header. */
		if (!v6)
			flags = 0;
	} else {
		return 0;
	}
	if (flags && bpf_l4_csum_replace(skb, check, 0, nat_address_difference(c, v6), flags))
		return DROP(DROP_CSUM_L4);
	if (c->port_from == c->port_to)
		return 0;
	flags &= ~(__u64)BPF_F_PSEUDO_HDR;
	if (bpf_l4_csum_replace(skb, check, c->port_from, c->port_to, flags | sizeof(c->port_to)))
		return DROP(DROP_CSUM_L4);
	if (unlikely(p->l4_offset != plain)) {
		if (bpf_skb_load_bytes(skb, check, &sum, sizeof(sum)) ||
		    bpf_skb_store_bytes(skb, p->l4_offset + port, &c->port_to, sizeof(c->port_to), 0))
			return DROP(DROP_WRITE_ERROR);
	} else {
		frame = frame_start(skb, plain + L4_HEADER_MIN);
		if (!frame)
			return DROP(DROP_WRITE_ERROR);
		*(__be16 *)(frame + plain + port) = c->port_to;
		sum = *(__u16 *)(frame + plain + NAT_UDP_CHECKSUM);
	}
	/* Then nothing makes up for the port in a sum over the whole packet (CHECKSUM_COMPLETE). */
	if (p->protocol == IPPROTO_UDP && unlikely(!sum))
		bpf_csum_update(skb, nat_word_difference(c->port_from, c->port_to));
	return 0;
}

/* The address in the IP header. */
static __always_inline int nat_rewrite_address(struct __sk_buff *skb, const struct nat_change *c,
					       const bool v6)
{
	struct iphdr *ip;

	if (v6) {
		/*
		 * Nothing in the header makes up for the change, so a sum over the whole
		 * packet (CHECKSUM_COMPLETE) is told of it. In IPv4 the header's checksum does.
		 */
		if (bpf_skb_store_bytes(skb,
					ETH_HLEN + (c->source ? offsetof(struct ipv6_header, saddr) :
								    offsetof(struct ipv6_header, daddr)),
					&c->to, sizeof(c->to), BPF_F_RECOMPUTE_CSUM))
			return DROP(DROP_WRITE_ERROR);
		return 0;
	}
	ip = ipv4_header(skb);
	if (!ip)
		return DROP(DROP_INVALID);
	ip->check = nat_checksum(ip->check, nat_address_difference(c, false), 0);
	if (c->source)
		ip->saddr = c->to.w[0];
	else
		ip->daddr = c->to.w[0];
	return 0;
}
