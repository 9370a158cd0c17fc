/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whole packets, right in everything: make_tcp() and so on, and the beginning of an ICMP error. */
#pragma once

#include "tests/lib/packet_builder.h"

static __always_inline void build_start(struct frame *f, __u32 ends, __u8 protocol)
{
	build_ethernet(f, ENDS_V6(ends) ? ETH_P_IPV6 : ETH_P_IP);
	build_ip(f, ends, protocol);
}

__noinline int build_whole_tcp(struct frame *f, __u32 ends, __u32 ports, __u32 flags)
{
	if (!f)
		return 0;
	build_start(f, ends, IPPROTO_TCP);
	build_tcp(f, ports, flags);
	build_payload(f, DEFAULT_PAYLOAD + 1);
	return finish(f);
}

static __always_inline void make_tcp(struct frame *f, const bool v6, enum host source,
				     enum host destination, __u16 sport, __u16 dport, __u8 flags)
{
	build_whole_tcp(f, ENDS(v6, source, destination), PORTS(sport, dport), flags);
}

__noinline int build_whole_udp(struct frame *f, __u32 ends, __u32 ports)
{
	if (!f)
		return 0;
	build_start(f, ends, IPPROTO_UDP);
	build_udp(f, ports);
	build_payload(f, DEFAULT_PAYLOAD);
	return finish(f);
}

static __always_inline void make_udp(struct frame *f, const bool v6, enum host source,
				     enum host destination, __u16 sport, __u16 dport)
{
	build_whole_udp(f, ENDS(v6, source, destination), PORTS(sport, dport));
}

static __always_inline void make_sctp(struct frame *f, const bool v6, enum host source,
				      enum host destination, __u16 sport, __u16 dport, __u8 type)
{
	struct sctp_header *sctp;

	build_start(f, ENDS(v6, source, destination), IPPROTO_SCTP);
	sctp = put_sctp(f, sport, dport, type);
	finish(f);
	sctp->checksum = sctp_checksum(f);
}

__noinline int build_whole_icmp(struct frame *f, __u32 ends, __u32 type_code, __u32 word)
{
	if (!f)
		return 0;
	build_start(f, ends, ENDS_V6(ends) ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
	build_icmp(f, ENDS_V6(ends), type_code >> 8, type_code & 0xff, word);
	build_payload(f, DEFAULT_PAYLOAD);
	return finish(f);
}

static __always_inline void make_icmp(struct frame *f, const bool v6, enum host source,
				      enum host destination, __u8 type, __u8 code, __u32 word)
{
	build_whole_icmp(f, ENDS(v6, source, destination), (__u32)type << 8 | code, word);
}

static __always_inline void make_echo(struct frame *f, const bool v6, enum host source,
				      enum host destination, __u16 id)
{
	make_icmp(f, v6, source, destination, v6 ? TYPE6_ECHO : TYPE4_ECHO, 0, (__u32)id << 16 | 1);
}

static __always_inline void make_echo_reply(struct frame *f, const bool v6, enum host source,
					    enum host destination, __u16 id)
{
	make_icmp(f, v6, source, destination, v6 ? TYPE6_ECHO_REPLY : TYPE4_ECHO_REPLY, 0,
		  (__u32)id << 16 | 1);
}

/*
 * An ICMP error from reporter to the sender of what it is about: put the quoted
 * IP header and what was behind it next, then finish(). v6_type, v4_type: of
 * the kind "unreachable" and so on in each family.
 */
static __always_inline void put_icmp_error(struct frame *f, const bool v6, enum host reporter,
					   enum host to, __u8 type, __u8 code, __u32 word)
{
	put_ip(f, v6, reporter, to, v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
	put_icmp(f, v6, type, code, word);
}

struct arp_message {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__be32 sender;
	__u8 target_mac[ETH_ALEN];
	__be32 target;
} __attribute__((packed));
ASSERT_SIZE(struct arp_message, 28);

static __always_inline struct arp_message *arp_of(struct frame *f)
{
	return frame_at(f, ETH_HLEN);
}

/* operation: 1 request, 2 reply. */
static __always_inline struct arp_message *make_arp(struct frame *f, __u16 operation,
						    enum host sender, enum host target)
{
	const __u8 mac[ETH_ALEN] = FRAME_SOURCE_MAC;
	struct arp_message *arp;

	put_ethernet(f, ETH_P_ARP);
	__builtin_memset(ethernet_of(f)->h_dest, 0xff, ETH_ALEN);
	arp = frame_put(f, sizeof(*arp));
	arp->hardware = bpf_htons(1);
	arp->protocol = bpf_htons(ETH_P_IP);
	arp->hardware_length = ETH_ALEN;
	arp->protocol_length = sizeof(arp->sender);
	arp->operation = bpf_htons(operation);
	__builtin_memcpy(arp->sender_mac, mac, ETH_ALEN);
	arp->sender = address4(sender);
	arp->target = address4(target);
	return arp;
}

#define ND_OPTION_SOURCE 1
#define ND_OPTION_TARGET 2

struct nd_packet {
	struct icmp_message icmp;
	struct in6 target;
	__u8 option; /* ND_OPTION_* */
	__u8 option_length; /* in units of 8 bytes */
	__u8 mac[ETH_ALEN];
};
ASSERT_SIZE(struct nd_packet, 32);

static __always_inline struct nd_packet *nd_of(struct frame *f)
{
	return frame_at(f, f->l4);
}

/* A neighbour solicitation for target, with the asker's link-layer address unless bare. */
static __always_inline struct nd_packet *make_solicitation(struct frame *f, enum host source,
							    enum host destination,
							    enum host target, const bool bare)
{
	const __u8 mac[ETH_ALEN] = FRAME_SOURCE_MAC;
	struct in6 about = address6(target);
	struct nd_packet *nd;

	put_ethernet(f, ETH_P_IPV6);
	put_ipv6(f, source, destination, IPPROTO_ICMPV6)->hop_limit = 255;
	nd = (void *)put_icmp(f, true, TYPE6_NEIGHBOUR_SOLICITATION, 0, 0);
	frame_put(f, bare ? sizeof(about) : sizeof(*nd) - sizeof(nd->icmp));
	nd->target = about;
	if (!bare) {
		nd->option = ND_OPTION_SOURCE;
		nd->option_length = 1;
		__builtin_memcpy(nd->mac, mac, ETH_ALEN);
	}
	finish(f);
	return nd;
}
