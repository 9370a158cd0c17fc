/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A frame in a map, where any offset can be read and written: the runner hands
 * it to the program under test and brings the result back. Bytes behind its
 * length are zero.
 */
#pragma once

#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "lib/common.h"

#define FRAME_MAX 4096 /* a power of two; BPF_PROG_TEST_RUN takes 3520 */
#define FRAME_SLACK 512 /* what lies at the last offset is still inside */
#define FRAME_LAYERS 6

#define LAYER_IPV4 1
#define LAYER_IPV6 2
#define LAYER_TCP 3
#define LAYER_UDP 4
#define LAYER_ICMP 5
#define LAYER_ICMPV6 6
#define LAYER_SCTP 7

/* A header whose length or checksum depends on what comes after it. */
struct frame_layer {
	__u16 kind; /* LAYER_* */
	__u16 offset;
	__u16 ip; /* offset of the IP header that it is under */
	__u16 end; /* of what it covers, 0: the frame's end */
};

struct frame {
	__u32 length;
	__u32 l3; /* offset of the first IP header; in a result: where it was sent */
	__u32 l4; /* of the first transport header, or of what is there in its place */
	__u32 inner; /* of the IP header that an ICMP error quotes */
	__u32 layers;
	__u32 pad;
	struct frame_layer layer[FRAME_LAYERS];
	__u8 data[FRAME_MAX + FRAME_SLACK];
};
ASSERT_SIZE(struct frame, 24 + FRAME_LAYERS * 8 + FRAME_MAX + FRAME_SLACK);

static __always_inline void *frame_at(struct frame *f, __u32 offset)
{
	return f->data + (offset & (FRAME_MAX - 1));
}

static __always_inline struct ethhdr *ethernet_of(struct frame *f)
{
	return (struct ethhdr *)f->data;
}

static __always_inline struct iphdr *ipv4_of(struct frame *f)
{
	return frame_at(f, f->l3);
}

static __always_inline struct ipv6hdr *ipv6_of(struct frame *f)
{
	return frame_at(f, f->l3);
}

static __always_inline struct tcphdr *tcp_of(struct frame *f)
{
	return frame_at(f, f->l4);
}

static __always_inline struct udphdr *udp_of(struct frame *f)
{
	return frame_at(f, f->l4);
}

/* Of ICMP and ICMPv6 alike. */
struct icmp_message {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id; /* of an echo; an error's other fields are in the same four bytes */
	__be16 sequence;
};
ASSERT_SIZE(struct icmp_message, 8);

static __always_inline struct icmp_message *icmp_of(struct frame *f)
{
	return frame_at(f, f->l4);
}

/* The hop limit or TTL. */
static __always_inline __u8 hops_of(struct frame *f, const bool v6)
{
	return v6 ? ipv6_of(f)->hop_limit : ipv4_of(f)->ttl;
}

#define SUM_CHUNK 512

/* The Internet checksum's sum (RFC 1071) over length bytes from offset, folded; not yet inverted. */
__noinline __u32 frame_sum(struct frame *f, __u32 offset, __u32 length, __u32 sum)
{
	__u8 rest[4] = {};
	__u32 i, n;
	__u8 *at;

	if (!f)
		return 0;
	for (i = 0; i < FRAME_MAX / SUM_CHUNK; i++) {
		if (length < 4)
			break;
		n = length & ~3u;
		if (n > SUM_CHUNK)
			n = SUM_CHUNK;
		/* Keeps the bound that the verifier has seen. */
		asm volatile("" : "+r"(n));
		if (n > SUM_CHUNK)
			break;
		sum = bpf_csum_diff(NULL, 0, frame_at(f, offset), n, sum);
		offset += n;
		length -= n;
	}
	at = frame_at(f, offset);
	if (length > 0)
		rest[0] = at[0];
	if (length > 1)
		rest[1] = at[1];
	if (length > 2)
		rest[2] = at[2];
	sum = bpf_csum_diff(NULL, 0, (__be32 *)rest, sizeof(rest), sum);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The pseudo header's part of a transport checksum: both have the addresses in one piece. */
static __always_inline __u32 frame_pseudo_sum(struct frame *f, __u32 ip, __u8 protocol,
					      __u32 length)
{
	const bool v6 = *(__u8 *)frame_at(f, ip) >> 4 == 6;
	__be32 tail[2] = { bpf_htonl(length), bpf_htonl(protocol) };
	__u32 sum = bpf_csum_diff(NULL, 0, tail, sizeof(tail), 0);

	return v6 ? frame_sum(f, ip + offsetof(struct ipv6hdr, saddr), 32, sum) :
		    frame_sum(f, ip + offsetof(struct iphdr, saddr), 8, sum);
}

/*
 * Of the layer's header and what it covers, with the checksum field as it
 * stands: 0 where that is right. SCTP has none of this kind: 0.
 */
__noinline __u32 layer_checksum(struct frame *f, __u32 index)
{
	struct frame_layer *layer;
	__u32 length, sum = 0;

	if (!f || index >= FRAME_LAYERS)
		return 1;
	layer = &f->layer[index];
	length = (layer->end ? layer->end : f->length) - layer->offset;
	switch (layer->kind) {
	case LAYER_IPV4:
		length = (*(__u8 *)frame_at(f, layer->offset) & 0xf) * 4;
		break;
	case LAYER_TCP:
		sum = frame_pseudo_sum(f, layer->ip, IPPROTO_TCP, length);
		break;
	case LAYER_UDP:
		sum = frame_pseudo_sum(f, layer->ip, IPPROTO_UDP, length);
		break;
	case LAYER_ICMPV6:
		sum = frame_pseudo_sum(f, layer->ip, IPPROTO_ICMPV6, length);
		break;
	case LAYER_ICMP:
		break;
	default:
		return 0;
	}
	return ~frame_sum(f, layer->offset, length, sum) & 0xffff;
}

/* Whether every checksum of the frame is right. */
__noinline int checksums_hold(struct frame *f)
{
	__u32 i;

	if (!f)
		return false;
	for (i = 0; i < FRAME_LAYERS; i++)
		if (i < f->layers && layer_checksum(f, i))
			return false;
	return true;
}

/*
 * Takes the layers of a whole packet from its headers instead of from what was
 * sent: for a result that a program has put together. IPv4 without options or
 * IPv6 without extension headers, and one transport header.
 */
static __always_inline void frame_parse(struct frame *f)
{
	const bool v6 = ethernet_of(f)->h_proto == bpf_htons(ETH_P_IPV6);
	__u8 protocol;

	f->l3 = ETH_HLEN;
	f->l4 = ETH_HLEN + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	f->layer[0] = (struct frame_layer){ v6 ? LAYER_IPV6 : LAYER_IPV4, f->l3, f->l3, 0 };
	protocol = v6 ? ipv6_of(f)->nexthdr : ipv4_of(f)->protocol;
	f->layer[1] = (struct frame_layer){ 0, f->l4, f->l3, 0 };
	f->layer[1].kind = protocol == IPPROTO_TCP	  ? LAYER_TCP :
			   protocol == IPPROTO_UDP	  ? LAYER_UDP :
			   protocol == IPPROTO_ICMP	  ? LAYER_ICMP :
			   protocol == IPPROTO_ICMPV6 ? LAYER_ICMPV6 :
							    LAYER_SCTP;
	f->layers = 2;
}

/* Whether both frames have the same bytes from offset on, and the same length. */
__noinline int frames_equal_from(struct frame *a, struct frame *b, __u32 offset)
{
	const __u64 *x, *y;
	__u32 i;

	if (!a || !b || a->length != b->length)
		return 0;
	for (i = 0; i < FRAME_MAX / 32; i++) {
		/* Past the end both are zero. */
		if (offset + 32 > FRAME_MAX)
			break;
		x = frame_at(a, offset);
		y = frame_at(b, offset);
		if ((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]))
			return 0;
		offset += 32;
	}
	return 1;
}
