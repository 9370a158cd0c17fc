/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Transport headers that are short, wrong or unknown. The frame may be longer than the packet: that is no help. */
#include "tests/lib/scenario.h"

#define SENT(name, build, reason)                                                       \
	SETUP(name) { add_cluster(); }                                                  \
	PKTGEN(name, from_container, lxc_a) { build; }                                  \
	CHECK(name)                                                                     \
	{                                                                               \
		assert_dropped(reason);                                                 \
		assert_unchanged();                                                     \
	}

/* So many bytes of a protocol; alone, and in a frame that goes on. */
static __always_inline void short_packet(struct frame *f, const bool v6, __u8 protocol,
					 const __u32 size)
{
	put_ip(f, v6, POD_A, POD_B, protocol);
	put_no_transport(f);
	put_payload(f, size);
	finish(f);
}

#define SHORT(name, protocol, size)                                                     \
	SENT(name, short_packet(frame, v6, protocol, size), DROP_CT_INVALID_HDR)        \
	SENT(name##_padded, short_packet(frame, v6, protocol, size); put_payload(frame, 40), \
	     DROP_CT_INVALID_HDR)

SHORT(tcp_0, IPPROTO_TCP, 0)
SHORT(tcp_4, IPPROTO_TCP, 4)
SHORT(tcp_13, IPPROTO_TCP, 13)
SHORT(tcp_19, IPPROTO_TCP, 19)
SHORT(udp_0, IPPROTO_UDP, 0)
SHORT(udp_7, IPPROTO_UDP, 7)
SHORT(sctp_0, IPPROTO_SCTP, 0)
SHORT(sctp_11, IPPROTO_SCTP, 11)
SHORT(icmp_0, v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP, 0)
SHORT(icmp_7, v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP, 7)

#define TCP_OFFSET(name, words)                                                         \
	SENT(name, make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_SYN);                \
	     tcp_of(frame)->doff = words;                                               \
	     finish_checksums(frame), DROP_CT_INVALID_HDR)

TCP_OFFSET(tcp_offset_4, 4)
TCP_OFFSET(tcp_offset_0, 0)

/* ---- protocols that nobody has a rule for ---- */

#define UNKNOWN(name, protocol) SENT(name, short_packet(frame, v6, protocol, 40), DROP_UNKNOWN_L4)

UNKNOWN(igmp, 2)
UNKNOWN(ip_in_ip, 4)
UNKNOWN(ip6_in_ip, 41)
UNKNOWN(gre, 47)
UNKNOWN(esp, 50)
UNKNOWN(ospf, 89)
UNKNOWN(udplite, 136)
UNKNOWN(reserved, 255)
/* The other family's ICMP. */
UNKNOWN(other_icmp, v6 ? IPPROTO_ICMP : IPPROTO_ICMPV6)

/* To IPv4 extension headers are protocols like others; to IPv6 some are what extension.c tests. */
#define UNKNOWN4(name, protocol)                                                        \
	SETUP4(name) { add_cluster(); }                                                 \
	PKTGEN4(name, from_container, lxc_a) { short_packet(frame, v6, protocol, 40); } \
	CHECK4(name) { assert_dropped(DROP_UNKNOWN_L4); }

UNKNOWN4(hop_by_hop, 0)
UNKNOWN4(routing, 43)
UNKNOWN4(fragment, 44)
UNKNOWN4(authentication, 51)
UNKNOWN4(none, 59)

/* ---- ICMP types ---- */

#define ICMP4(name, type)                                                               \
	SETUP4(name) { add_cluster(); }                                                 \
	PKTGEN4(name, from_container, lxc_a)                                            \
	{                                                                               \
		make_icmp(frame, v6, POD_A, POD_B, type, 0, 0);                         \
	}                                                                               \
	CHECK4(name) { assert_dropped(DROP_UNKNOWN_ICMP4_TYPE); }

ICMP4(icmp4_source_quench, 4)
ICMP4(icmp4_redirect, 5)
ICMP4(icmp4_router_advertisement, 9)
ICMP4(icmp4_timestamp, 13)
ICMP4(icmp4_mask, 17)
ICMP4(icmp4_255, 255)
ICMP4(icmp4_128, 128)

#define ICMP6(name, type, reason)                                                       \
	SETUP6(name) { add_cluster(); }                                                 \
	PKTGEN6(name, from_container, lxc_a)                                            \
	{                                                                               \
		make_icmp(frame, v6, POD_A, POD_B, type, 0, 0);                         \
	}                                                                               \
	CHECK6(name) { assert_dropped(reason); }

ICMP6(icmp6_0, 0, DROP_UNKNOWN_ICMP6_TYPE)
ICMP6(icmp6_5, 5, DROP_UNKNOWN_ICMP6_TYPE)
ICMP6(icmp6_8, 8, DROP_UNKNOWN_ICMP6_TYPE)
ICMP6(icmp6_127, 127, DROP_UNKNOWN_ICMP6_TYPE)
ICMP6(icmp6_mld_query, 130, DROP_ND_IGNORED)
ICMP6(icmp6_mld_report, 131, DROP_ND_IGNORED)
ICMP6(icmp6_mld_done, 132, DROP_ND_IGNORED)
ICMP6(icmp6_router_solicitation, 133, DROP_ND_IGNORED)
ICMP6(icmp6_router_advertisement, 134, DROP_ND_IGNORED)
ICMP6(icmp6_advertisement, 136, DROP_ND_IGNORED)
ICMP6(icmp6_redirect, 137, DROP_ND_IGNORED)
ICMP6(icmp6_renumbering, 138, DROP_UNKNOWN_ICMP6_TYPE)
ICMP6(icmp6_mld2_report, 143, DROP_ND_IGNORED)
ICMP6(icmp6_255, 255, DROP_UNKNOWN_ICMP6_TYPE)

/* ---- errors that quote too little, or nonsense ---- */

/* A has asked, B complains; the quote is built by hand. */
#define QUOTES(family, name, build, reason)                                             \
	SETUP##family(name) { add_cluster(); }                                          \
	PKTGEN##family(name, from_container, lxc_a)                                     \
	{                                                                               \
		make_udp(frame, v6, POD_A, POD_B, 5000, 53);                            \
	}                                                                               \
	PKTGEN##family##_N(name, 2, from_container, lxc_b)                              \
	{                                                                               \
		put_icmp_error(frame, v6, POD_B, POD_A,                                 \
			       v6 ? TYPE6_UNREACHABLE : TYPE4_UNREACHABLE, 3, 0);       \
		build;                                                                  \
	}                                                                               \
	CHECK##family##_N(name, 2) { assert_dropped(reason); }

#define QUOTED_UDP                                                                      \
	put_ip(frame, v6, POD_A, POD_B, IPPROTO_UDP);                                   \
	put_udp(frame, 5000, 53);                                                       \
	finish(frame)
#define SHORTER_BY(bytes)                                                               \
	frame->length -= bytes;                                                         \
	finish(frame)

QUOTES(, quotes_nothing, finish(frame), DROP_CT_INVALID_HDR)
QUOTES(, quotes_4_bytes, put_payload(frame, 4); finish(frame), DROP_CT_INVALID_HDR)
QUOTES(, quotes_no_transport, put_ip(frame, v6, POD_A, POD_B, IPPROTO_UDP); finish(frame),
       DROP_CT_INVALID_HDR)
QUOTES(, quotes_7_of_transport, QUOTED_UDP; SHORTER_BY(1), DROP_CT_INVALID_HDR)
QUOTES(, quotes_4_of_transport, QUOTED_UDP; SHORTER_BY(4), DROP_CT_INVALID_HDR)
QUOTES(, quotes_other_version, QUOTED_UDP;
       *(__u8 *)frame_at(frame, frame->inner) = v6 ? 0x45 : 0x60;
       finish_checksums(frame), DROP_CT_INVALID_HDR)
QUOTES(4, quotes_ihl_4, QUOTED_UDP; *(__u8 *)frame_at(frame, frame->inner) = 0x44;
       finish_checksums(frame), DROP_CT_INVALID_HDR)
QUOTES(4, quotes_ihl_15, QUOTED_UDP; *(__u8 *)frame_at(frame, frame->inner) = 0x4f;
       finish_checksums(frame), DROP_CT_INVALID_HDR)
QUOTES(4, quotes_later_fragment, QUOTED_UDP;
       ((struct iphdr *)frame_at(frame, frame->inner))->frag_off = bpf_htons(3);
       finish_checksums(frame), DROP_CT_INVALID_HDR)
/* With its options the quoted header is longer. */
QUOTES(4, quotes_options_alone,
       struct iphdr *inner = put_ipv4(frame, POD_A, POD_B, IPPROTO_UDP);
       put_ipv4_options(frame, inner, 2);
       finish(frame), DROP_CT_INVALID_HDR)
QUOTES(6, quotes_extension, put_ipv6(frame, POD_A, POD_B, EXT_DESTINATION);
       put_extension(frame, IPPROTO_UDP, 1);
       put_udp(frame, 5000, 53);
       finish(frame), DROP_UNKNOWN_L4)
QUOTES(6, quotes_later_fragment, put_ipv6(frame, POD_A, POD_B, EXT_FRAGMENT);
       put_fragment6(frame, IPPROTO_UDP, 3, 7);
       put_payload(frame, 16);
       finish(frame), DROP_UNKNOWN_L4)

/* Behind the packet's end, in the frame, is nothing to quote. */
QUOTES(, quotes_padding, finish(frame); QUOTED_UDP;
       if (v6) ipv6_of(frame)->payload_len = bpf_htons(8);
       else ipv4_of(frame)->tot_len = bpf_htons(28);
       finish_checksums(frame), DROP_CT_INVALID_HDR)

/* Half of what is quoted is behind the end. */
QUOTES(, quotes_half_in_padding, QUOTED_UDP;
       if (v6) ipv6_of(frame)->payload_len = bpf_htons(8 + 40 + 4);
       else ipv4_of(frame)->tot_len = bpf_htons(20 + 8 + 20 + 4);
       finish_checksums(frame), DROP_CT_INVALID_HDR)
