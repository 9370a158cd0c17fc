/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Builds frames piece by piece, each behind the last: put_ethernet(), put_ip(),
 * put_tcp(), put_payload(), ... and finish(), which sets lengths and checksums.
 * What is to be wrong is made wrong after that; finish_checksums() then mends
 * the checksums alone. Whole packets are in packets.h.
 */
#pragma once

#include "lib/common.h"
#include "tests/lib/frame.h"
#include "tests/lib/hosts.h"

#define FRAGMENT_MORE 0x2000 /* IPv4's bit; put_fragment6() takes it too */

#define EXT_HOP_BY_HOP 0
#define EXT_ROUTING 43
#define EXT_FRAGMENT 44
#define EXT_AUTH 51
#define EXT_NONE 59
#define EXT_DESTINATION 60

#define TYPE4_ECHO_REPLY 0
#define TYPE4_UNREACHABLE 3
#define TYPE4_REDIRECT 5
#define TYPE4_ECHO 8
#define TYPE4_TIME_EXCEEDED 11
#define TYPE4_PARAMETER 12
#define CODE4_FRAGMENTATION_NEEDED 4

#define TYPE6_UNREACHABLE 1
#define TYPE6_TOO_BIG 2
#define TYPE6_TIME_EXCEEDED 3
#define TYPE6_PARAMETER 4
#define TYPE6_ECHO 128
#define TYPE6_ECHO_REPLY 129
#define TYPE6_ROUTER_SOLICITATION 133
#define TYPE6_NEIGHBOUR_SOLICITATION 135
#define TYPE6_NEIGHBOUR_ADVERTISEMENT 136

#define DEFAULT_HOPS 64
#define DEFAULT_PAYLOAD 18 /* makes no multiple of four */

/* Where the next piece goes; size more bytes belong to the frame. */
static __always_inline void *frame_put(struct frame *f, __u32 size)
{
	void *at = frame_at(f, f->length);

	f->length += size;
	return at;
}

static __always_inline void frame_add_layer(struct frame *f, __u16 kind)
{
	struct frame_layer *layer = &f->layer[f->layers < FRAME_LAYERS ? f->layers : 0];
	__u16 ip = f->inner ? f->inner : f->l3;

	layer->kind = kind;
	layer->offset = f->length;
	layer->ip = ip;
	layer->end = 0;
	f->layers++;
	if (kind != LAYER_IPV4 && kind != LAYER_IPV6 && !f->inner)
		f->l4 = f->length;
}

/*
 * The builder's larger parts are global functions: compiled and verified once,
 * not for each of many uses. They take five arguments at most, so some travel
 * together, and they start with build_.
 */
#define ENDS(v6, source, destination) ((__u32)(v6) | (source) << 8 | (destination) << 16)
#define ENDS_V6(ends) ((ends) & 1)
#define ENDS_SOURCE(ends) (((ends) >> 8) & 0xff)
#define ENDS_DESTINATION(ends) (((ends) >> 16) & 0xff)
#define PORTS(source, destination) ((__u32)(source) << 16 | (__u16)(destination))

__noinline int build_ethernet(struct frame *f, __u32 protocol)
{
	const __u8 from[ETH_ALEN] = FRAME_SOURCE_MAC, to[ETH_ALEN] = FRAME_TARGET_MAC;
	struct ethhdr *eth;

	if (!f)
		return 0;
	eth = frame_put(f, ETH_HLEN);
	__builtin_memcpy(eth->h_source, from, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, to, ETH_ALEN);
	eth->h_proto = bpf_htons(protocol);
	return 0;
}

static __always_inline void put_ethernet(struct frame *f, __u16 protocol)
{
	build_ethernet(f, protocol);
}

/* A tag in the frame, between the addresses and the EtherType that put_ethernet() wrote. */
static __always_inline void put_vlan(struct frame *f, __u16 tci)
{
	__be16 *tag = frame_put(f, 4);

	tag[1] = ethernet_of(f)->h_proto;
	tag[0] = bpf_htons(tci);
	ethernet_of(f)->h_proto = bpf_htons(ETH_P_8021Q);
}

__noinline int build_ip(struct frame *f, __u32 ends, __u32 protocol)
{
	if (!f)
		return 0;
	if (f->l3)
		f->inner = f->length;
	else
		f->l3 = f->length;
	if (ENDS_V6(ends)) {
		struct in6 from = address6(ENDS_SOURCE(ends)), to = address6(ENDS_DESTINATION(ends));
		struct ipv6hdr *ip;

		frame_add_layer(f, LAYER_IPV6);
		ip = frame_put(f, sizeof(*ip));
		ip->version = 6;
		ip->nexthdr = protocol;
		ip->hop_limit = DEFAULT_HOPS;
		__builtin_memcpy(&ip->saddr, &from, sizeof(from));
		__builtin_memcpy(&ip->daddr, &to, sizeof(to));
	} else {
		struct iphdr *ip;

		frame_add_layer(f, LAYER_IPV4);
		ip = frame_put(f, sizeof(*ip));
		ip->version = 4;
		ip->ihl = 5;
		ip->id = bpf_htons(0x1234);
		ip->ttl = DEFAULT_HOPS;
		ip->protocol = protocol;
		ip->saddr = address4(ENDS_SOURCE(ends));
		ip->daddr = address4(ENDS_DESTINATION(ends));
	}
	return 0;
}

static __always_inline struct iphdr *put_ipv4(struct frame *f, enum host source,
					      enum host destination, __u8 protocol)
{
	const __u32 offset = f->length;

	build_ip(f, ENDS(false, source, destination), protocol);
	return frame_at(f, offset);
}

static __always_inline struct ipv6hdr *put_ipv6(struct frame *f, enum host source,
						enum host destination, __u8 next)
{
	const __u32 offset = f->length;

	build_ip(f, ENDS(true, source, destination), next);
	return frame_at(f, offset);
}

/* Behind an IPv4 header: that many words of no-operation options. */
static __always_inline void put_ipv4_options(struct frame *f, struct iphdr *ip, const __u32 words)
{
	__u8 *options = frame_put(f, words * 4);

	ip->ihl += words;
	__builtin_memset(options, 1, words * 4);
}

/* Either family's header without extras; Ethernet before it unless it is a quoted one. */
static __always_inline void put_ip(struct frame *f, const bool v6, enum host source,
				   enum host destination, __u8 protocol)
{
	if (!f->length)
		build_ethernet(f, v6 ? ETH_P_IPV6 : ETH_P_IP);
	build_ip(f, ENDS(v6, source, destination), protocol);
}

/* What comes next is where the transport header would be. */
static __always_inline void put_no_transport(struct frame *f)
{
	if (!f->inner)
		f->l4 = f->length;
}

/* A hop-by-hop, routing or destination options header of 8 * units bytes; the IPv6 header names it. */
static __always_inline __u8 *put_extension(struct frame *f, __u8 next, const __u32 units)
{
	__u8 *ext = frame_put(f, units * 8);

	ext[0] = next;
	ext[1] = units - 1;
	/* One PadN option fills it (in a routing header: type 1, which is unassigned, no segments left). */
	ext[2] = 1;
	ext[3] = units * 8 - 4;
	return ext;
}

/* An authentication header: it counts its length in words, less two. */
static __always_inline __u8 *put_auth(struct frame *f, __u8 next, const __u32 words)
{
	__u8 *ext = frame_put(f, words * 4);

	ext[0] = next;
	ext[1] = words - 2;
	ext[7] = 1; /* SPI */
	ext[11] = 1; /* sequence number */
	return ext;
}

/* position: in units of 8 bytes, with FRAGMENT_MORE. */
static __always_inline void put_fragment6(struct frame *f, __u8 next, __u16 position, __u32 id)
{
	__u8 *ext = frame_put(f, 8);
	__u16 more = position & FRAGMENT_MORE ? 1 : 0;

	ext[0] = next;
	*(__be16 *)(ext + 2) = bpf_htons((position & 0x1fff) << 3 | more);
	*(__be32 *)(ext + 4) = bpf_htonl(id);
}

/*
 * The headers of a fragment, whichever family's. position: in units of 8
 * bytes, with FRAGMENT_MORE. What comes next is put by put_udp() and so on in
 * the first one, by put_payload() in a later one.
 */
static __always_inline void put_ip_fragment(struct frame *f, const bool v6, enum host source,
					    enum host destination, __u8 protocol, __u16 position,
					    __u16 id)
{
	put_ip(f, v6, source, destination, v6 ? EXT_FRAGMENT : protocol);
	if (v6) {
		put_fragment6(f, protocol, position, id);
	} else {
		ipv4_of(f)->frag_off = bpf_htons(position);
		ipv4_of(f)->id = bpf_htons(id);
	}
	put_no_transport(f);
}

__noinline int build_tcp(struct frame *f, __u32 ports, __u32 flags)
{
	struct tcphdr *tcp;

	if (!f)
		return 0;
	frame_add_layer(f, LAYER_TCP);
	tcp = frame_put(f, sizeof(*tcp));
	tcp->source = bpf_htons(ports >> 16);
	tcp->dest = bpf_htons(ports);
	tcp->seq = bpf_htonl(1000);
	tcp->ack_seq = bpf_htonl(2000);
	tcp->doff = 5;
	*((__u8 *)tcp + 13) = flags;
	tcp->window = bpf_htons(65535);
	return 0;
}

static __always_inline struct tcphdr *put_tcp(struct frame *f, __u16 sport, __u16 dport, __u8 flags)
{
	const __u32 offset = f->length;

	build_tcp(f, PORTS(sport, dport), flags);
	return frame_at(f, offset);
}

__noinline int build_udp(struct frame *f, __u32 ports)
{
	struct udphdr *udp;

	if (!f)
		return 0;
	frame_add_layer(f, LAYER_UDP);
	udp = frame_put(f, sizeof(*udp));
	udp->source = bpf_htons(ports >> 16);
	udp->dest = bpf_htons(ports);
	return 0;
}

static __always_inline struct udphdr *put_udp(struct frame *f, __u16 sport, __u16 dport)
{
	const __u32 offset = f->length;

	build_udp(f, PORTS(sport, dport));
	return frame_at(f, offset);
}

struct sctp_header {
	__be16 source;
	__be16 dest;
	__be32 tag;
	__le32 checksum; /* CRC32c */
};
ASSERT_SIZE(struct sctp_header, 12);

/* The common header and a chunk of type (1: INIT, 0: DATA) without content. */
static __always_inline struct sctp_header *put_sctp(struct frame *f, __u16 sport, __u16 dport,
						    __u8 type)
{
	struct sctp_header *sctp;
	__u8 *chunk;

	frame_add_layer(f, LAYER_SCTP);
	sctp = frame_put(f, sizeof(*sctp));
	sctp->source = bpf_htons(sport);
	sctp->dest = bpf_htons(dport);
	sctp->tag = bpf_htonl(0x01020304);
	chunk = frame_put(f, 4);
	chunk[0] = type;
	chunk[3] = 4;
	return sctp;
}

__noinline int build_icmp(struct frame *f, __u32 v6, __u32 type, __u32 code, __u32 word)
{
	struct icmp_message *icmp;

	if (!f)
		return 0;
	frame_add_layer(f, v6 ? LAYER_ICMPV6 : LAYER_ICMP);
	icmp = frame_put(f, sizeof(*icmp));
	icmp->type = type;
	icmp->code = code;
	icmp->id = bpf_htons(word >> 16);
	icmp->sequence = bpf_htons(word);
	return 0;
}

/* word: the header's last four bytes, an echo's id and sequence number, an error's MTU. */
static __always_inline struct icmp_message *put_icmp(struct frame *f, const bool v6, __u8 type,
						     __u8 code, __u32 word)
{
	const __u32 offset = f->length;

	build_icmp(f, v6, type, code, word);
	return frame_at(f, offset);
}

__noinline int build_payload(struct frame *f, __u32 length)
{
	__u8 *payload;
	__u32 i;

	if (!f)
		return 0;
	payload = frame_put(f, length);
	for (i = 0; i < 32; i++) {
		if (i >= length)
			break;
		payload[i] = i + 1;
	}
	return 0;
}

/* Bytes that count up, 32 at most; the rest is zero. */
static __always_inline void put_payload(struct frame *f, __u32 length)
{
	build_payload(f, length);
}

/* Sets every length field, innermost first. */
static __always_inline void finish_lengths(struct frame *f)
{
	__u32 i, offset, end;

	for (i = 0; i < FRAME_LAYERS; i++) {
		if (i >= f->layers)
			break;
		offset = f->layer[i].offset;
		end = f->layer[i].end ? f->layer[i].end : f->length;
		switch (f->layer[i].kind) {
		case LAYER_IPV4:
			((struct iphdr *)frame_at(f, offset))->tot_len = bpf_htons(end - offset);
			break;
		case LAYER_IPV6:
			((struct ipv6hdr *)frame_at(f, offset))->payload_len =
				bpf_htons(end - offset - sizeof(struct ipv6hdr));
			break;
		case LAYER_UDP:
			((struct udphdr *)frame_at(f, offset))->len = bpf_htons(end - offset);
			break;
		}
	}
}

/* Sets every checksum, innermost first, since outer ones cover them; SCTP's is put_sctp_checksum()'s. */
__noinline int finish_checksums(struct frame *f)
{
	__be16 *check;
	__u32 i, n;

	if (!f)
		return 0;
	for (n = 0; n < FRAME_LAYERS; n++) {
		i = FRAME_LAYERS - 1 - n;
		if (i >= f->layers)
			continue;
		check = frame_at(f, f->layer[i].offset);
		switch (f->layer[i].kind) {
		case LAYER_IPV4:
			check += 5;
			break;
		case LAYER_TCP:
			check += 8;
			break;
		case LAYER_UDP:
			check += 3;
			break;
		case LAYER_ICMP:
		case LAYER_ICMPV6:
			check += 1;
			break;
		default:
			continue;
		}
		*check = 0;
		*check = layer_checksum(f, i);
		if (f->layer[i].kind == LAYER_UDP && !*check)
			*check = 0xffff;
	}
	return 0;
}

__noinline int finish(struct frame *f)
{
	if (!f)
		return 0;
	finish_lengths(f);
	return finish_checksums(f);
}

/* CRC32c's (Castagnoli, reflected) remainders of four bits. */
static const __u32 crc32c_nibble[16] = {
	0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
	0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
	0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

/* CRC32c over length bytes, at most 64 of them. */
__noinline __u32 frame_crc32c(struct frame *f, __u32 offset, __u32 length)
{
	__u32 crc = ~0u, i;

	if (!f)
		return 0;
	for (i = 0; i < 64; i++) {
		if (i >= length)
			break;
		crc ^= *(__u8 *)frame_at(f, offset + i);
		crc = crc >> 4 ^ crc32c_nibble[crc & 15];
		crc = crc >> 4 ^ crc32c_nibble[crc & 15];
	}
	return ~crc;
}

static __always_inline __u32 sctp_checksum(struct frame *f)
{
	struct sctp_header *sctp = frame_at(f, f->l4);
	__u32 stands = sctp->checksum, right;

	sctp->checksum = 0;
	right = frame_crc32c(f, f->l4, f->length - f->l4);
	sctp->checksum = stands;
	return right;
}
