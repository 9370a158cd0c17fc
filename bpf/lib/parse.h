/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From a frame to a struct packet. Everything that later parts rely on is
 * checked here: lengths by the IP header's own count as well as by the frame's.
 */
#pragma once

#include "common.h"
#include "drop.h"
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

struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id; /* of an echo */
	__be16 sequence;
};
ASSERT_SIZE(struct icmp_header, L4_HEADER_MIN);

/* The IPv4 header in the frame, writable until the next helper that moves data; or NULL. */
static __always_inline struct iphdr *ipv4_header(struct __sk_buff *skb)
{
	const __u32 need = ETH_HLEN + sizeof(struct iphdr);
	void *data = (void *)(long)skb->data;

	if (unlikely(data + need > (void *)(long)skb->data_end)) {
		if (bpf_skb_pull_data(skb, need))
			return NULL;
		data = (void *)(long)skb->data;
		if (data + need > (void *)(long)skb->data_end)
			return NULL;
	}
	return data + ETH_HLEN;
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

static __always_inline bool is_icmp_error(__u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/*
 * An ICMP error belongs to the flow that it quotes. It goes to the sender of
 * the quoted packet, so it is a packet of that flow the other way.
 */
static __always_inline int parse_icmp_error(struct __sk_buff *skb, struct packet *p, __u32 offset)
{
	union {
		__be16 ports[2];
		struct icmp_header echo;
	} l4;
	struct iphdr inner;

	offset += L4_HEADER_MIN;
	if (bpf_skb_load_bytes(skb, offset, &inner, sizeof(inner)))
		return DROP(DROP_CT_INVALID_HDR);
	if (inner.version != 4 || inner.ihl < 5 || inner.frag_off & bpf_htons(IP_OFFSET))
		return DROP(DROP_CT_INVALID_HDR);
	/* Nobody but the sender of a packet has a use for an error about it. */
	if (inner.saddr != p->daddr)
		return DROP(DROP_CT_INVALID_HDR);
	if (bpf_skb_load_bytes(skb, offset + inner.ihl * 4, &l4, sizeof(l4)))
		return DROP(DROP_CT_INVALID_HDR);

	p->flags |= PACKET_RELATED;
	p->protocol = inner.protocol;
	p->flow.saddr = inner.daddr;
	p->flow.daddr = inner.saddr;
	switch (inner.protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		p->flow.sport = l4.ports[1];
		p->flow.dport = l4.ports[0];
		return 0;
	case IPPROTO_ICMP:
		/* Turned round, a quoted request is where its reply would be. */
		if (l4.echo.type == ICMP_ECHO)
			p->flags |= PACKET_ECHO_REPLY;
		else if (l4.echo.type != ICMP_ECHOREPLY)
			return DROP(DROP_UNKNOWN_ICMP4_TYPE);
		p->flow.sport = l4.echo.id;
		p->flow.dport = l4.echo.id;
		return 0;
	}
	return DROP(DROP_UNKNOWN_L4);
}

static __always_inline int parse_icmp(struct __sk_buff *skb, struct packet *p, __u32 offset)
{
	struct icmp_header *icmp = l4_header(skb, offset, sizeof(*icmp));

	if (!icmp)
		return DROP(DROP_CT_INVALID_HDR);
	if (is_icmp_error(icmp->type))
		return parse_icmp_error(skb, p, offset);
	if (icmp->type == ICMP_ECHOREPLY)
		p->flags |= PACKET_ECHO_REPLY;
	else if (icmp->type != ICMP_ECHO)
		return DROP(DROP_UNKNOWN_ICMP4_TYPE);
	p->flow.sport = icmp->id;
	p->flow.dport = icmp->id;
	return 0;
}

static __always_inline int parse_tcp(struct __sk_buff *skb, struct packet *p, __u32 offset)
{
	__u8 *tcp = l4_header(skb, offset, TCP_HEADER_MIN);

	if (!tcp)
		return DROP(DROP_CT_INVALID_HDR);
	p->flow.sport = *(__be16 *)tcp;
	p->flow.dport = *(__be16 *)(tcp + 2);
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
	p->flow.sport = ports[0];
	p->flow.dport = ports[1];
	return 0;
}

/* length: what the IP header leaves for it, which padding may exceed. */
static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *p, __u32 offset,
				    __u32 length)
{
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
		if (length < L4_HEADER_MIN)
			return DROP(DROP_CT_INVALID_HDR);
		return parse_icmp(skb, p, offset);
	}
	return DROP(DROP_UNKNOWN_L4);
}

/*
 * Fills p's addresses, flow, protocol and flags. source: the only address that
 * may have sent it, 0 for any. Returns 0 or a DROP().
 *
 * A global function, here as elsewhere: verified by itself and once, so that
 * its branches do not multiply with those of its callers. (Hence the check of p.)
 */
__noinline int parse_ipv4(struct __sk_buff *skb, struct packet *p, __be32 source)
{
	struct iphdr *ip = ipv4_header(skb);
	__u32 header, total;
	__be16 fragment, id;
	int ret;

	if (!ip || !p)
		return DROP(DROP_INVALID);
	p->saddr = ip->saddr;
	p->daddr = ip->daddr;
	p->flow.saddr = ip->saddr;
	p->flow.daddr = ip->daddr;
	p->protocol = ip->protocol;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || total < header || ETH_HLEN + total > skb->len)
		return DROP(DROP_INVALID);
	if (source && ip->saddr != source)
		return DROP(DROP_INVALID_SIP);

	fragment = ip->frag_off & bpf_htons(IP_MF | IP_OFFSET);
	if (likely(!fragment))
		return parse_l4(skb, p, ETH_HLEN + header, total - header);

	id = ip->id;
	if (fragment & bpf_htons(IP_OFFSET))
		return fragment_find(p, id) ? 0 : DROP(DROP_FRAG_NOT_FOUND);
	ret = parse_l4(skb, p, ETH_HLEN + header, total - header);
	if (!ret)
		fragment_note(p, id);
	return ret;
}
