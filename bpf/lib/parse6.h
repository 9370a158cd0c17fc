/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From an IPv6 frame to a struct packet. */
#pragma once

#include "common.h"
#include "parse.h"

#define EXTENSION_HEADERS_MAX 6

#define NEXT_HOP_BY_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_AUTHENTICATION 51
#define NEXT_NONE 59
#define NEXT_DESTINATION 60

#define ROUTING_TYPE_0 0

#define FRAGMENT6_OFFSET 0xfff8
#define FRAGMENT6_MORE 0x0001

struct extension_header {
	__u8 next;
	__u8 length; /* in eights of bytes beyond the first; of AH in fours beyond two */
	__u8 routing_type;
	__u8 rest[5];
};
ASSERT_SIZE(struct extension_header, 8);

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};
ASSERT_SIZE(struct fragment_header, 8);

/* What the walk over extension headers found. */
struct extensions {
	__u32 offset; /* in the frame, of what follows them */
	__be32 fragment_id;
	__be16 fragment; /* offset and flag, 0 without a fragment header */
	__u8 protocol; /* of what follows them */
	__u8 fragment_next;
	__u8 fragmented;
};

/* end: where the payload ends in the frame. Returns 0 or a DROP(). */
static __always_inline int parse_extensions(struct __sk_buff *skb, struct extensions *x, __u32 end)
{
	union {
		struct extension_header plain;
		struct fragment_header fragment;
	} h;
	int i;

	for (i = 0; i < EXTENSION_HEADERS_MAX + 1; i++) {
		__u32 length;

		switch (x->protocol) {
		case NEXT_HOP_BY_HOP:
		case NEXT_DESTINATION:
		case NEXT_ROUTING:
		case NEXT_FRAGMENT:
		case NEXT_AUTHENTICATION:
			break;
		case NEXT_NONE:
			return DROP(DROP_INVALID_EXTHDR);
		default:
			return 0;
		}
		if (i == EXTENSION_HEADERS_MAX || x->offset + sizeof(h) > end ||
		    bpf_skb_load_bytes(skb, x->offset, &h, sizeof(h)))
			return DROP(DROP_INVALID_EXTHDR);
		length = (h.plain.length + 1) * 8;
		if (x->protocol == NEXT_AUTHENTICATION)
			length = (h.plain.length + 2) * 4;
		if (x->protocol == NEXT_ROUTING && h.plain.routing_type == ROUTING_TYPE_0)
			return DROP(DROP_INVALID_EXTHDR);
		if (x->protocol == NEXT_FRAGMENT) {
			if (x->fragmented)
				return DROP(DROP_INVALID_EXTHDR);
			length = sizeof(h.fragment);
			x->fragmented = 1;
			x->fragment = h.fragment.offset &
				      bpf_htons(FRAGMENT6_OFFSET | FRAGMENT6_MORE);
			x->fragment_id = h.fragment.id;
			x->fragment_next = h.fragment.next;
		}
		x->protocol = h.plain.next;
		x->offset += length;
		if (x->offset > end)
			return DROP(DROP_INVALID_EXTHDR);
		/* What follows a later fragment's header is the middle of something. */
		if (x->fragment & bpf_htons(FRAGMENT6_OFFSET))
			return 0;
	}
	return DROP(DROP_INVALID_EXTHDR);
}

/* Not from an address that leads anywhere, to whoever listens on the link. */
static __always_inline bool is_link_chatter(const struct packet *p)
{
	return (is_link_local(&p->saddr) || in6_is_zero(&p->saddr)) &&
	       is_multicast(&p->daddr, true);
}

/* As parse_ipv4(). */
__noinline int parse_ipv6(struct __sk_buff *skb, struct packet *p, const struct endpoint *source)
{
	struct ipv6_header *ip = ipv6_header(skb);
	struct extensions x = {};
	__u32 end;
	int ret;

	if (!ip || !p)
		return DROP(DROP_INVALID);
	p->family = FAMILY_IPV6;
	p->saddr = ip->saddr;
	p->daddr = ip->daddr;
	p->flow_saddr = ip->saddr;
	p->protocol = ip->next_header;
	end = ETH_HLEN + sizeof(*ip) + bpf_ntohs(ip->payload_length);
	if (unlikely((ip->version_class_label & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) ||
		     end > skb->len))
		return DROP(DROP_INVALID);
	if (source && unlikely(!in6_equal(&p->saddr, &source->ipv6) || in6_is_zero(&p->saddr)))
		return is_link_chatter(p) ? DROP(DROP_ND_IGNORED) : DROP(DROP_INVALID_SIP);

	x.protocol = p->protocol;
	x.offset = ETH_HLEN + sizeof(*ip);
	if (unlikely(x.protocol != IPPROTO_TCP && x.protocol != IPPROTO_UDP)) {
		ret = parse_extensions(skb, &x, end);
		if (ret)
			return ret;
		p->protocol = x.protocol;
		if (x.fragment & bpf_htons(FRAGMENT6_OFFSET))
			return parse_later_fragment(p, x.fragment_id, x.fragment_next,
						    bpf_ntohs(x.fragment) & FRAGMENT6_OFFSET, true);
		/* At most six headers of 2048 bytes: tells the verifier how far it may be. */
		x.offset &= 0x3fff;
	}
	ret = parse_l4(skb, p, x.offset, end - x.offset, true);
	if (!ret && x.fragment)
		fragment_note(p, x.fragment_id, x.fragment_next, true);
	return ret;
}

static __always_inline int parse(struct __sk_buff *skb, struct packet *p,
				 const struct endpoint *source, const bool v6)
{
	return v6 ? parse_ipv6(skb, p, source) : parse_ipv4(skb, p, source);
}
