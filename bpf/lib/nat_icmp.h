/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Masquerading of ICMP errors: what they quote is translated too, or nobody
 * would know which packet they complain about.
 */
#pragma once

#include "common.h"
#include "drop.h"
#include "nat_rewrite.h"
#include "packet.h"
#include "parse.h"

/* A field of the quote, and with it the error's own checksum at check. */
static __always_inline int nat_replace_quoted(struct __sk_buff *skb, __u32 check, __u32 offset,
					      const void *to, const __u32 size, __u32 difference)
{
	if (bpf_l4_csum_replace(skb, check, 0, difference, 0))
		return DROP(DROP_CSUM_L4);
	if (bpf_skb_store_bytes(skb, offset, to, size, 0))
		return DROP(DROP_WRITE_ERROR);
	return 0;
}

/* The port and the checksum of the transport header in the quote, which ends at end. */
static __always_inline int nat_rewrite_quoted_l4(struct __sk_buff *skb, const struct packet *p,
						 const struct nat_change *c, __u32 l4, __u32 end,
						 const bool v6)
{
	__u32 own = p->l4_offset + NAT_ICMP_CHECKSUM;
	__u32 ports = nat_word_difference(c->port_from, c->port_to);
	__u32 addresses = nat_address_difference(c, v6);
	__u32 port = l4 + (c->source ? sizeof(__be16) : 0);
	__u16 check, changed;
	int ret;

	if (p->protocol == IPPROTO_SCTP)
		return 0;
	if (nat_is_icmp(p, v6))
		port = l4 + NAT_ICMP_ECHO_ID;
	ret = nat_replace_quoted(skb, own, port, &c->port_to, sizeof(c->port_to), ports);
	if (ret)
		return ret;

	if (p->protocol == IPPROTO_TCP) {
		l4 += NAT_TCP_CHECKSUM;
	} else if (p->protocol == IPPROTO_UDP) {
		l4 += NAT_UDP_CHECKSUM;
	} else {
		l4 += NAT_ICMP_CHECKSUM;
		if (!v6)
			addresses = 0;
	}
	/* Eight bytes are all that must be quoted; TCP's checksum is behind them. */
	if (l4 + sizeof(check) > end || bpf_skb_load_bytes(skb, l4, &check, sizeof(check)))
		return 0;
	if (p->protocol == IPPROTO_UDP && !check)
		return 0;
	changed = nat_checksum(check, addresses, ports);
	if (p->protocol == IPPROTO_UDP && !changed)
		changed = 0xffff;
	return nat_replace_quoted(skb, own, l4, &changed, sizeof(changed),
				  nat_word_difference(check, changed));
}

/*
 * Whether the address in the packet's own header is the one that changes. A
 * router's error, the node's own say, bears its own source.
 */
static __always_inline bool nat_is_own_address(const struct packet *p, const struct nat_change *c,
					       const bool v6)
{
	return !c->source || address_equal(&p->saddr, &c->from, v6);
}

/*
 * In an ICMP error: the quoted packet went the other way, so the address that
 * changes is its destination if the error's is the source, and vice versa.
 */
static __always_inline int nat_rewrite_quote(struct __sk_buff *skb, const struct packet *p,
					     const struct nat_change *c, const bool v6)
{
	__u32 own = p->l4_offset + NAT_ICMP_CHECKSUM;
	__u32 addresses = nat_address_difference(c, v6);
	__u32 quote = p->l4_offset + L4_HEADER_MIN;
	__u32 l4 = quote + NAT_IPV6_HEADER;
	__u16 length, check, changed;
	__u8 first;
	int ret;

	/* What follows the packet in the frame is not quoted. */
	if (bpf_skb_load_bytes(skb,
			       ETH_HLEN + (v6 ? offsetof(struct ipv6_header, payload_length) :
						    offsetof(struct iphdr, tot_len)),
			       &length, sizeof(length)))
		return DROP(DROP_INVALID);
	if (v6) {
		ret = nat_replace_quoted(skb, own,
					 quote + (c->source ? offsetof(struct ipv6_header, daddr) :
							      offsetof(struct ipv6_header, saddr)),
					 &c->to, sizeof(c->to), addresses);
		if (ret)
			return ret;
	} else {
		if (bpf_skb_load_bytes(skb, quote, &first, sizeof(first)) ||
		    bpf_skb_load_bytes(skb, quote + offsetof(struct iphdr, check), &check,
				       sizeof(check)))
			return DROP(DROP_CT_INVALID_HDR);
		l4 = quote + (first & 0xf) * 4;
		ret = nat_replace_quoted(skb, own,
					 quote + (c->source ? offsetof(struct iphdr, daddr) :
							      offsetof(struct iphdr, saddr)),
					 &c->to.w[0], sizeof(c->to.w[0]), addresses);
		if (ret)
			return ret;
		changed = nat_checksum(check, addresses, 0);
		ret = nat_replace_quoted(skb, own, quote + offsetof(struct iphdr, check), &changed,
					 sizeof(changed), nat_word_difference(check, changed));
		if (ret)
			return ret;
	}
	ret = nat_rewrite_quoted_l4(skb, p, c, l4,
				    ETH_HLEN + bpf_ntohs(length) + (v6 ? NAT_IPV6_HEADER : 0), v6);
	if (ret || !v6)
		return ret;
	/* The error's own pseudo header. */
	if (nat_is_own_address(p, c, v6) &&
	    bpf_l4_csum_replace(skb, own, 0, addresses, BPF_F_PSEUDO_HDR))
		return DROP(DROP_CSUM_L4);
	return 0;
}

__noinline int nat_rewrite_quote4(struct __sk_buff *skb, const struct packet *p,
				  const struct nat_change *c)
{
	return p && c ? nat_rewrite_quote(skb, p, c, false) : DROP(DROP_INVALID);
}

__noinline int nat_rewrite_quote6(struct __sk_buff *skb, const struct packet *p,
				  const struct nat_change *c)
{
	return p && c ? nat_rewrite_quote(skb, p, c, true) : DROP(DROP_INVALID);
}
