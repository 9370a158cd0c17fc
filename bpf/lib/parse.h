/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From a frame to a struct packet: layer 4 for both families, and IPv4.
 * Everything that later parts rely on is checked here: lengths by the IP
 * header's own count as well as by the frame's.
 */
#pragma once

#include "common.h"
#include "drop.h"
#include "endpoint.h"
#include "fragment.h"
#include "packet.h"

#define TCP_HEADER_MIN 20
#define SCTP_HEADER_MIN 12
/* Of UDP and ICMP headers, and of what an ICMP error quotes behind the IP header. */
#define L4_HEADER_MIN 8

/* linux/icmp.h wants the C library's headers, which this target has none of. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PARAMPROB 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129
#define ICMPV6_MLD_FIRST 130
#define ICMPV6_ROUTER_SOLICITATION 133
#define ICMPV6_NEIGHBOUR_SOLICITATION 135
#define ICMPV6_NEIGHBOUR_ADVERTISEMENT 136
#define ICMPV6_REDIRECT 137
#define ICMPV6_MLD2_REPORT 143

struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id; /* of an echo */
	__be16 sequence;
};
ASSERT_SIZE(struct icmp_header, L4_HEADER_MIN);

/* So many bytes of the frame from its start, writable until the next helper that moves data; or NULL. */
static __always_inline void *frame_start(struct __sk_buff *skb, const __u32 need)
{
	void *data = (void *)(long)skb->data;

	if (unlikely(data + need > (void *)(long)skb->data_end)) {
		if (bpf_skb_pull_data(skb, need))
			return NULL;
		data = (void *)(long)skb->data;
		if (data + need > (void *)(long)skb->data_end)
			return NULL;
	}
	return data;
}

static __always_inline struct iphdr *ipv4_header(struct __sk_buff *skb)
{
	void *data = frame_start(skb, ETH_HLEN + sizeof(struct iphdr));

	return data ? data + ETH_HLEN : NULL;
}

static __always_inline struct ipv6_header *ipv6_header(struct __sk_buff *skb)
{
	void *data = frame_start(skb, ETH_HLEN + sizeof(struct ipv6_header));

	return data ? data + ETH_HLEN : NULL;
}

static __always_inline void *l4_header(struct __sk_buff *skb, __u32 offset, const __u32 need)
{
	void *l4 = (void *)(long)skb->data + offset;

	/* Keeps what is compared below and what is returned one pointer to the verifier. */
	asm volatile("" : "+r"(l4));
	if (unlikely(l4 + need > (void *)(long)skb->data_end)) {
		if (bpf_skb_pull_data(skb, offset + need))
			return NULL;
		l4 = (void *)(long)skb->data + offset;
		asm volatile("" : "+r"(l4));
		if (l4 + need > (void *)(long)skb->data_end)
			return NULL;
	}
	return l4;
}

static __always_inline bool is_icmp_error(__u8 type, const bool v6)
{
	if (v6)
		return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/* Of the quoted packet: fills the flow, turned round. l4: its first eight bytes. */
static __always_inline int parse_quoted_l4(struct packet *p, __u8 protocol, const __be16 *l4,
					   const bool v6)
{
	__u8 type = *(const __u8 *)l4;

	p->protocol = protocol;
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		p->sport = l4[1];
		p->dport = l4[0];
		return 0;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((protocol == IPPROTO_ICMPV6) != v6)
			break;
		/* Turned round, a quoted request is where its reply would be. */
		if (type == (v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO))
			p->flags |= PACKET_ECHO_REPLY;
		else if (type != (v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY))
			return v6 ? DROP(DROP_UNKNOWN_ICMP6_TYPE) : DROP(DROP_UNKNOWN_ICMP4_TYPE);
		p->sport = l4[2];
		p->dport = l4[2];
		return 0;
	}
	return DROP(DROP_UNKNOWN_L4);
}

/*
 * An ICMP error belongs to the flow that it quotes. It goes to the sender of
 * the quoted packet, so it is a packet of that flow the other way.
 */
static __always_inline int parse_icmp_error(struct __sk_buff *skb, struct packet *p, __u32 offset,
					    __u32 length, const bool v6)
{
	/* Of the quote; padding behind the packet is none of it. */
	__u32 most = length - L4_HEADER_MIN;
	__be16 l4[4];

	offset += L4_HEADER_MIN;
	p->flags |= PACKET_RELATED;
	if (v6) {
		struct ipv6_header inner;

		if (most < sizeof(inner) + sizeof(l4) ||
		    bpf_skb_load_bytes(skb, offset, &inner, sizeof(inner)) ||
		    (inner.version_class_label & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
			return DROP(DROP_CT_INVALID_HDR);
		/* Nobody but the sender of a packet has a use for an error about it. */
		if (!in6_equal(&inner.saddr, &p->daddr) ||
		    bpf_skb_load_bytes(skb, offset + sizeof(inner), l4, sizeof(l4)))
			return DROP(DROP_CT_INVALID_HDR);
		p->flow_saddr = inner.daddr;
		return parse_quoted_l4(p, inner.next_header, l4, true);
	} else {
		struct iphdr inner;

		if (most < sizeof(inner) ||
		    bpf_skb_load_bytes(skb, offset, &inner, sizeof(inner)) || inner.version != 4 ||
		    inner.ihl < 5 || inner.frag_off & bpf_htons(IP_OFFSET) ||
		    most < inner.ihl * 4 + sizeof(l4))
			return DROP(DROP_CT_INVALID_HDR);
		if (inner.saddr != p->daddr.w[0] ||
		    bpf_skb_load_bytes(skb, offset + inner.ihl * 4, l4, sizeof(l4)))
			return DROP(DROP_CT_INVALID_HDR);
		p->flow_saddr.w[0] = inner.daddr;
		return parse_quoted_l4(p, inner.protocol, l4, false);
	}
}

static __always_inline int parse_icmp(struct __sk_buff *skb, struct packet *p, __u32 offset,
				      __u32 length, const bool v6)
{
	struct icmp_header *icmp = l4_header(skb, offset, sizeof(*icmp));
	__u8 type;

	if (!icmp)
		return DROP(DROP_CT_INVALID_HDR);
	type = icmp->type;
	p->sport = icmp->id;
	p->dport = icmp->id;
	if (type == (v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO))
		return 0;
	if (type == (v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY)) {
		p->flags |= PACKET_ECHO_REPLY;
		return 0;
	}
	if (is_icmp_error(type, v6))
		return parse_icmp_error(skb, p, offset, length, v6);
	if (!v6)
		return DROP(DROP_UNKNOWN_ICMP4_TYPE);
	if ((type >= ICMPV6_MLD_FIRST && type <= ICMPV6_REDIRECT) || type == ICMPV6_MLD2_REPORT)
		return DROP(DROP_ND_IGNORED);
	return DROP(DROP_UNKNOWN_ICMP6_TYPE);
}

static __always_inline int parse_tcp(struct __sk_buff *skb, struct packet *p, __u32 offset)
{
	__u8 *tcp = l4_header(skb, offset, TCP_HEADER_MIN);

	if (!tcp)
		return DROP(DROP_CT_INVALID_HDR);
	p->sport = *(__be16 *)tcp;
	p->dport = *(__be16 *)(tcp + 2);
	if ((tcp[12] >> 4) < TCP_HEADER_MIN / 4)
		return DROP(DROP_CT_INVALID_HDR);
	p->tcp_flags = tcp[13];
	return 0;
}

static __always_inline int parse_ports(struct __sk_buff *skb, struct packet *p, __u32 offset)
{
	__be16 *ports = l4_header(skb, offset, 2 * sizeof(__be16));

	if (!ports)
		return DROP(DROP_CT_INVALID_HDR);
	p->sport = ports[0];
	p->dport = ports[1];
	return 0;
}

/* length: what the IP header leaves for it, which padding may exceed. */
static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *p, __u32 offset,
				    __u32 length, const bool v6)
{
	p->l4_offset = offset;
	switch (p->protocol) {
	case IPPROTO_TCP:
		if (length < TCP_HEADER_MIN)
			return DROP(DROP_CT_INVALID_HDR);
		return parse_tcp(skb, p, offset);
	case IPPROTO_UDP:
		if (length < L4_HEADER_MIN)
			return DROP(DROP_CT_INVALID_HDR);
		return parse_ports(skb, p, offset);
	case IPPROTO_SCTP:
		if (length < SCTP_HEADER_MIN)
			return DROP(DROP_CT_INVALID_HDR);
		return parse_ports(skb, p, offset);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((p->protocol == IPPROTO_ICMPV6) != v6)
			break;
		if (length < L4_HEADER_MIN)
			return DROP(DROP_CT_INVALID_HDR);
		return parse_icmp(skb, p, offset, length, v6);
	}
	return DROP(DROP_UNKNOWN_L4);
}

/* A later fragment. start: where in the datagram it begins, in bytes. Returns 0 or a DROP(). */
static __always_inline int parse_later_fragment(struct packet *p, __be32 id, __u8 protocol,
						__u32 start, const bool v6)
{
	if (!fragment_find(p, id, protocol, v6))
		return DROP(DROP_FRAG_NOT_FOUND);
	/* It could write over the header that the first one was judged by (RFC 1858). */
	if ((p->protocol == IPPROTO_TCP && start < TCP_HEADER_MIN) ||
	    (p->protocol == IPPROTO_SCTP && start < SCTP_HEADER_MIN))
		return DROP(DROP_CT_INVALID_HDR);
	return 0;
}

/*
 * Fills p's addresses, flow, protocol and flags. source: the only endpoint that
 * may have sent it, NULL for any. Returns 0 or a DROP().
 *
 * A global function, here as elsewhere: verified by itself and once, so that
 * its branches do not multiply with those of its callers. (Hence the check of p.)
 */
__noinline int parse_ipv4(struct __sk_buff *skb, struct packet *p, const struct endpoint *source)
{
	struct iphdr *ip = ipv4_header(skb);
	__u32 header, total;
	__be16 fragment, id;
	__u8 protocol;
	int ret;

	if (!ip || !p)
		return DROP(DROP_INVALID);
	p->family = FAMILY_IPV4;
	p->saddr.w[0] = ip->saddr;
	p->daddr.w[0] = ip->daddr;
	p->flow_saddr.w[0] = ip->saddr;
	p->protocol = ip->protocol;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (unlikely(ip->version != 4 || header < sizeof(*ip) || total < header ||
		     ETH_HLEN + total > skb->len))
		return DROP(DROP_INVALID);
	if (source && unlikely(ip->saddr != source->ipv4 || !ip->saddr))
		return DROP(DROP_INVALID_SIP);

	fragment = ip->frag_off & bpf_htons(IP_MF | IP_OFFSET);
	if (likely(!fragment))
		return parse_l4(skb, p, ETH_HLEN + header, total - header, false);

	id = ip->id;
	protocol = ip->protocol;
	if (fragment & bpf_htons(IP_OFFSET))
		return parse_later_fragment(p, id, protocol,
					    (bpf_ntohs(fragment) & IP_OFFSET) * 8, false);
	ret = parse_l4(skb, p, ETH_HLEN + header, total - header, false);
	if (!ret)
		fragment_note(p, id, protocol, false);
	return ret;
}
