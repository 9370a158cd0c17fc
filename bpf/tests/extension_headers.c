/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IPv6 extension headers: passed over to what policy is about, as long as they are sound. */
#include "tests/lib/scenario.h"

/* B takes UDP 53 from A, and echo. */
static __always_inline void guarded_b(void)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_UDP, 53));
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_ICMPV6));
}

static __always_inline void put_datagram(struct frame *f, __u16 dport)
{
	put_udp(f, 5000, dport);
	put_payload(f, 11);
	finish(f);
}

/* With these headers before it a datagram to port 53 passes, and one to 54 does not. */
#define PASSES(name, first, headers)                                                    \
	SETUP6(name) { guarded_b(); }                                                   \
	PKTGEN6(name, from_container, lxc_a)                                            \
	{                                                                               \
		put_ip(frame, v6, POD_A, POD_B, first);                                 \
		headers;                                                                \
		put_datagram(frame, 53);                                                \
	}                                                                               \
	CHECK6(name)                                                                    \
	{                                                                               \
		assert_to_pod(lxc_b);                                                   \
		assert_one_hop_less();                                                  \
	}                                                                               \
	PKTGEN6_N(name, 2, from_container, lxc_a)                                       \
	{                                                                               \
		put_ip(frame, v6, POD_A, POD_B, first);                                 \
		headers;                                                                \
		put_datagram(frame, 54);                                                \
	}                                                                               \
	CHECK6_N(name, 2) { assert_dropped(DROP_POLICY); }

#define OPTIONS(next) put_extension(frame, next, 1)

static __always_inline void put_routing(struct frame *f, __u8 next, __u8 type, __u8 left)
{
	__u8 *ext = put_extension(f, next, 3);

	ext[2] = type;
	ext[3] = left;
}

PASSES(hop_by_hop, EXT_HOP_BY_HOP, OPTIONS(IPPROTO_UDP))
PASSES(destination, EXT_DESTINATION, OPTIONS(IPPROTO_UDP))
PASSES(routing_2, EXT_ROUTING, put_routing(frame, IPPROTO_UDP, 2, 0))
PASSES(routing_4, EXT_ROUTING, put_routing(frame, IPPROTO_UDP, 4, 1))
PASSES(authentication, EXT_AUTH, put_auth(frame, IPPROTO_UDP, 6))
PASSES(authentication_odd, EXT_AUTH, put_auth(frame, IPPROTO_UDP, 7))
PASSES(two, EXT_HOP_BY_HOP, OPTIONS(EXT_DESTINATION); OPTIONS(IPPROTO_UDP))
PASSES(same_again, EXT_DESTINATION, OPTIONS(EXT_DESTINATION); OPTIONS(IPPROTO_UDP))
PASSES(long_one, EXT_DESTINATION, put_extension(frame, IPPROTO_UDP, 32))
PASSES(longest, EXT_DESTINATION, put_extension(frame, IPPROTO_UDP, 256))
PASSES(all_kinds, EXT_HOP_BY_HOP, OPTIONS(EXT_DESTINATION); OPTIONS(EXT_ROUTING);
       put_routing(frame, EXT_FRAGMENT, 2, 0);
       put_fragment6(frame, EXT_AUTH, 0, 7);
       put_auth(frame, EXT_DESTINATION, 6);
       OPTIONS(IPPROTO_UDP))

#define FOUR OPTIONS(EXT_DESTINATION); OPTIONS(EXT_DESTINATION); OPTIONS(EXT_DESTINATION); \
	OPTIONS(EXT_DESTINATION)

PASSES(six, EXT_DESTINATION, FOUR; OPTIONS(EXT_DESTINATION); OPTIONS(IPPROTO_UDP))

/* ---- refused ---- */

#define REFUSED(name, first, headers, reason)                                           \
	SETUP6(name) { add_cluster(); }                                                 \
	PKTGEN6(name, from_container, lxc_a)                                            \
	{                                                                               \
		put_ip(frame, v6, POD_A, POD_B, first);                                 \
		headers;                                                                \
	}                                                                               \
	CHECK6(name)                                                                    \
	{                                                                               \
		assert_dropped(reason);                                                 \
		assert_unchanged();                                                     \
	}

REFUSED(seven, EXT_DESTINATION,
	FOUR; OPTIONS(EXT_DESTINATION); OPTIONS(EXT_DESTINATION); OPTIONS(IPPROTO_UDP);
	put_datagram(frame, 53), DROP_INVALID_EXTHDR)
REFUSED(routing_0, EXT_ROUTING, put_routing(frame, IPPROTO_UDP, 0, 1); put_datagram(frame, 53),
	DROP_INVALID_EXTHDR)
REFUSED(routing_0_spent, EXT_ROUTING, put_routing(frame, IPPROTO_UDP, 0, 0); put_datagram(frame, 53),
	DROP_INVALID_EXTHDR)
REFUSED(routing_0_later, EXT_HOP_BY_HOP, OPTIONS(EXT_ROUTING);
	put_routing(frame, IPPROTO_UDP, 0, 1);
	put_datagram(frame, 53), DROP_INVALID_EXTHDR)
REFUSED(nothing_next, EXT_NONE, put_datagram(frame, 53), DROP_INVALID_EXTHDR)
REFUSED(nothing_next_later, EXT_HOP_BY_HOP, OPTIONS(EXT_NONE); put_datagram(frame, 53),
	DROP_INVALID_EXTHDR)
REFUSED(two_fragment_headers, EXT_FRAGMENT, put_fragment6(frame, EXT_FRAGMENT, 0, 7);
	put_fragment6(frame, IPPROTO_UDP, 0, 7);
	put_datagram(frame, 53), DROP_INVALID_EXTHDR)
/* A header that has no room in the payload, or goes past its end. */
REFUSED(no_room, EXT_HOP_BY_HOP, put_payload(frame, 7); finish(frame), DROP_INVALID_EXTHDR)
REFUSED(no_payload, EXT_DESTINATION, finish(frame), DROP_INVALID_EXTHDR)
REFUSED(in_padding, EXT_DESTINATION, finish(frame); OPTIONS(IPPROTO_UDP); put_udp(frame, 1, 53),
	DROP_INVALID_EXTHDR)
REFUSED(past_the_end, EXT_DESTINATION, OPTIONS(IPPROTO_UDP)[1] = 5; put_datagram(frame, 53),
	DROP_INVALID_EXTHDR)
REFUSED(far_past_the_end, EXT_DESTINATION, OPTIONS(IPPROTO_UDP)[1] = 255; put_datagram(frame, 53),
	DROP_INVALID_EXTHDR)
REFUSED(fragment_no_room, EXT_FRAGMENT, put_payload(frame, 4); finish(frame), DROP_INVALID_EXTHDR)
REFUSED(auth_past_the_end, EXT_AUTH, put_auth(frame, IPPROTO_UDP, 6)[1] = 200;
	put_datagram(frame, 53), DROP_INVALID_EXTHDR)
/* A jumbogram's own length is nothing. */
REFUSED(jumbogram, EXT_HOP_BY_HOP, OPTIONS(IPPROTO_UDP); put_datagram(frame, 53);
	ipv6_of(frame)->payload_len = 0, DROP_INVALID_EXTHDR)
/* What is left for the transport header is too little. */
REFUSED(short_udp, EXT_HOP_BY_HOP, OPTIONS(IPPROTO_UDP); put_payload(frame, 7); finish(frame),
	DROP_CT_INVALID_HDR)
REFUSED(short_tcp, EXT_HOP_BY_HOP, OPTIONS(IPPROTO_TCP); put_payload(frame, 19); finish(frame),
	DROP_CT_INVALID_HDR)
REFUSED(no_udp, EXT_DESTINATION, OPTIONS(IPPROTO_UDP); finish(frame), DROP_CT_INVALID_HDR)
/* Protocols that no rule can name. */
REFUSED(esp_behind, EXT_HOP_BY_HOP, OPTIONS(50); put_payload(frame, 40); finish(frame),
	DROP_UNKNOWN_L4)
REFUSED(mobility, 135, put_payload(frame, 40); finish(frame), DROP_UNKNOWN_L4)
REFUSED(icmp4_behind, EXT_HOP_BY_HOP, OPTIONS(IPPROTO_ICMP); put_payload(frame, 40); finish(frame),
	DROP_UNKNOWN_L4)
/* Discovery behind extension headers (RFC 6980 forbids fragments of it) is not answered. */
REFUSED(solicitation_behind, EXT_HOP_BY_HOP, OPTIONS(IPPROTO_ICMPV6);
	put_icmp(frame, v6, TYPE6_NEIGHBOUR_SOLICITATION, 0, 0);
	put_payload(frame, 24);
	finish(frame), DROP_ND_IGNORED)

/* ---- other transports behind them ---- */

SETUP6(tcp_behind) { add_cluster(); }
PKTGEN6(tcp_behind, from_container, lxc_a)
{
	put_ip(frame, v6, POD_A, POD_B, EXT_HOP_BY_HOP);
	OPTIONS(IPPROTO_TCP);
	put_tcp(frame, 1000, 80, TCP_SYN);
	put_payload(frame, 9);
	finish(frame);
}
CHECK6(tcp_behind)
{
	assert_to_pod(lxc_b);
	assert_one_hop_less();
	test_assert(flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_B, 80));
}
/* The answer without is of the same flow. */
PKTGEN6_N(tcp_behind, 2, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, POD_A, 80, 1000, TCP_RST);
}
CHECK6_N(tcp_behind, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_B, 80);

	assert_to_pod(lxc_a);
	test_require(ct);
	assert_eq(ct->seen[CT_REPLY], CT_SEEN | CT_SEEN_RST);
}

SETUP6(echo_behind) { guarded_b(); }
PKTGEN6(echo_behind, from_container, lxc_a)
{
	put_ip(frame, v6, POD_A, POD_B, EXT_DESTINATION);
	OPTIONS(IPPROTO_ICMPV6);
	put_icmp(frame, v6, TYPE6_ECHO, 0, 9 << 16);
	finish(frame);
}
CHECK6(echo_behind)
{
	assert_to_pod(lxc_b);
	assert_one_hop_less();
	test_assert(flow_of(v6, IPPROTO_ICMPV6, POD_A, 9, POD_B, 9));
}

/* An error about a packet, itself behind options. */
SETUP6(error_behind) { add_cluster(); }
PKTGEN6(error_behind, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
PKTGEN6_N(error_behind, 2, from_container, lxc_b)
{
	put_ip(frame, v6, POD_B, POD_A, EXT_DESTINATION);
	OPTIONS(IPPROTO_ICMPV6);
	put_icmp(frame, v6, TYPE6_UNREACHABLE, 4, 0);
	put_ip(frame, v6, POD_A, POD_B, IPPROTO_UDP);
	put_udp(frame, 5000, 53);
	finish(frame);
}
CHECK6_N(error_behind, 2) { assert_to_pod(lxc_a); }

/* By the other ways. */
SETUP6(routed) { guarded_b(); }
PKTGEN6(routed, to_container, lxc_b)
{
	context->ingress_ifindex = CONFIG(lxc_a_ifindex);
	context->mark = mark_of_identity(ID_A);
	put_ip(frame, v6, POD_A, POD_B, EXT_HOP_BY_HOP);
	OPTIONS(IPPROTO_UDP);
	put_datagram(frame, 54);
}
CHECK6(routed) { assert_dropped(DROP_POLICY); }
PKTGEN6_N(routed, 2, from_overlay, vxlan)
{
	context->flags |= CONTEXT_TUNNEL;
	context->tunnel_id = ID_A;
	put_ip(frame, v6, POD_REMOTE, POD_B, EXT_HOP_BY_HOP);
	OPTIONS(IPPROTO_UDP);
	put_datagram(frame, 54);
}
CHECK6_N(routed, 2) { assert_dropped(DROP_POLICY); }
