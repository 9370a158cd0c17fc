/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments: the first one speaks for the others, and none may rewrite what it said. */
#include "tests/lib/scenario.h"

#define MORE FRAGMENT_MORE

/* B takes UDP 53 and TCP 80 from A. */
static __always_inline void guarded_b(void)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_UDP, 53));
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_TCP, 80));
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_SCTP, 9));
}

/* Of a datagram from A to B: the first 24 bytes. */
static __always_inline void first_udp(struct frame *f, const bool v6, __u16 dport, __u16 id)
{
	put_ip_fragment(f, v6, POD_A, POD_B, IPPROTO_UDP, 0 | MORE, id);
	put_udp(f, 5000, dport);
	put_payload(f, 16);
	finish(f);
}

static __always_inline void later(struct frame *f, const bool v6, __u8 protocol, __u16 position,
				  __u16 id)
{
	put_ip_fragment(f, v6, POD_A, POD_B, protocol, position, id);
	put_payload(f, 24);
	finish(f);
}

#define FROM_A(name, n) PKTGEN_N(name, n, from_container, lxc_a)

/* Three pieces of one datagram are three packets of one flow. */
SETUP(in_order) { guarded_b(); }
FROM_A(in_order, 1) { first_udp(frame, v6, 53, 7); }
CHECK(in_order)
{
	assert_to_pod(lxc_b);
	assert_eq(hops_of(frame, v6), DEFAULT_HOPS - 1);
	test_assert(frames_equal_from(frame, sent, sent->l4));
}
FROM_A(in_order, 2) { later(frame, v6, IPPROTO_UDP, 3 | MORE, 7); }
CHECK_N(in_order, 2)
{
	assert_to_pod(lxc_b);
	assert_eq(hops_of(frame, v6), DEFAULT_HOPS - 1);
	test_assert(checksums_hold(frame));
}
FROM_A(in_order, 3) { later(frame, v6, IPPROTO_UDP, 6, 7); }
CHECK_N(in_order, 3)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_B, 53);

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 3);
}

/* What the first may not, the later may not either. */
SETUP(denied) { guarded_b(); }
FROM_A(denied, 1) { first_udp(frame, v6, 54, 7); }
CHECK(denied) { assert_dropped(DROP_POLICY); }
FROM_A(denied, 2) { later(frame, v6, IPPROTO_UDP, 3, 7); }
CHECK_N(denied, 2) { assert_dropped(DROP_POLICY); }

/* Before the first one comes nobody knows whose they are. */
SETUP(out_of_order) { guarded_b(); }
FROM_A(out_of_order, 1) { later(frame, v6, IPPROTO_UDP, 3, 7); }
CHECK(out_of_order) { assert_dropped(DROP_FRAG_NOT_FOUND); }
FROM_A(out_of_order, 2) { first_udp(frame, v6, 53, 7); }
FROM_A(out_of_order, 3) { later(frame, v6, IPPROTO_UDP, 3, 7); }
CHECK_N(out_of_order, 3) { assert_to_pod(lxc_b); }

/* Nor those of another datagram: identification, protocol, source and destination all count. */
SETUP(of_another) { add_cluster(); }
FROM_A(of_another, 1) { first_udp(frame, v6, 53, 7); }
FROM_A(of_another, 2) { later(frame, v6, IPPROTO_UDP, 3, 8); }
CHECK_N(of_another, 2) { assert_dropped(DROP_FRAG_NOT_FOUND); }
FROM_A(of_another, 3) { later(frame, v6, IPPROTO_TCP, 3, 7); }
CHECK_N(of_another, 3) { assert_dropped(DROP_FRAG_NOT_FOUND); }
FROM_A(of_another, 4)
{
	put_ip_fragment(frame, v6, POD_A, POD_REMOTE, IPPROTO_UDP, 3, 7);
	put_payload(frame, 24);
	finish(frame);
}
CHECK_N(of_another, 4) { assert_dropped(DROP_FRAG_NOT_FOUND); }
PKTGEN_N(of_another, 5, from_container, lxc_b)
{
	put_ip_fragment(frame, v6, POD_B, POD_A, IPPROTO_UDP, 3, 7);
	put_payload(frame, 24);
	finish(frame);
}
CHECK_N(of_another, 5) { assert_dropped(DROP_FRAG_NOT_FOUND); }

/* A forged first fragment leaves nothing behind. */
SETUP(forged) { add_cluster(); }
PKTGEN(forged, from_container, lxc_b) { first_udp(frame, v6, 53, 7); }
CHECK(forged) { assert_dropped(DROP_INVALID_SIP); }
FROM_A(forged, 2) { later(frame, v6, IPPROTO_UDP, 3, 7); }
CHECK_N(forged, 2) { assert_dropped(DROP_FRAG_NOT_FOUND); }

/* The last one that claims to be the first decides. */
SETUP(two_firsts) { guarded_b(); }
FROM_A(two_firsts, 1) { first_udp(frame, v6, 53, 7); }
FROM_A(two_firsts, 2) { first_udp(frame, v6, 54, 7); }
CHECK_N(two_firsts, 2) { assert_dropped(DROP_POLICY); }
FROM_A(two_firsts, 3) { later(frame, v6, IPPROTO_UDP, 3, 7); }
CHECK_N(two_firsts, 3) { assert_dropped(DROP_POLICY); }

/* ---- too little in the first ---- */

#define TINY(name, protocol, size)                                                      \
	SETUP(name) { add_cluster(); }                                                  \
	FROM_A(name, 1)                                                                 \
	{                                                                               \
		put_ip_fragment(frame, v6, POD_A, POD_B, protocol, 0 | MORE, 7);        \
		put_payload(frame, size);                                               \
		finish(frame);                                                          \
	}                                                                               \
	CHECK(name) { assert_dropped(DROP_CT_INVALID_HDR); }                            \
	FROM_A(name, 2) { later(frame, v6, protocol, 3, 7); }                           \
	CHECK_N(name, 2) { assert_dropped(DROP_FRAG_NOT_FOUND); }

TINY(tiny_tcp, IPPROTO_TCP, 8)
TINY(tiny_tcp_16, IPPROTO_TCP, 16)
TINY(tiny_udp, IPPROTO_UDP, 4)
TINY(tiny_sctp, IPPROTO_SCTP, 8)
TINY(tiny_icmp, v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP, 4)
TINY(empty_first, IPPROTO_TCP, 0)

/* ---- fragments that would write over the header that was judged ---- */

static __always_inline void first_tcp(struct frame *f, const bool v6)
{
	put_ip_fragment(f, v6, POD_A, POD_B, IPPROTO_TCP, 0 | MORE, 7);
	put_tcp(f, 1000, 80, TCP_ACK);
	put_payload(f, 4);
	finish(f);
}

#define OVERLAPPING(name, protocol, first, position, outcome)                           \
	SETUP(name) { guarded_b(); }                                                    \
	FROM_A(name, 1) { first; }                                                      \
	CHECK(name) { assert_to_pod(lxc_b); }                                           \
	FROM_A(name, 2) { later(frame, v6, protocol, position, 7); }                    \
	CHECK_N(name, 2) { outcome; }

static __always_inline void first_sctp(struct frame *f, const bool v6)
{
	put_ip_fragment(f, v6, POD_A, POD_B, IPPROTO_SCTP, 0 | MORE, 7);
	put_sctp(f, 2905, 9, 1);
	finish(f);
}

OVERLAPPING(tcp_at_8, IPPROTO_TCP, first_tcp(frame, v6), 1, assert_dropped(DROP_CT_INVALID_HDR))
OVERLAPPING(tcp_at_16, IPPROTO_TCP, first_tcp(frame, v6), 2 | MORE,
	    assert_dropped(DROP_CT_INVALID_HDR))
OVERLAPPING(tcp_at_24, IPPROTO_TCP, first_tcp(frame, v6), 3, assert_to_pod(lxc_b))
OVERLAPPING(sctp_at_8, IPPROTO_SCTP, first_sctp(frame, v6), 1, assert_dropped(DROP_CT_INVALID_HDR))
OVERLAPPING(sctp_at_16, IPPROTO_SCTP, first_sctp(frame, v6), 2, assert_to_pod(lxc_b))
OVERLAPPING(udp_at_8, IPPROTO_UDP, first_udp(frame, v6, 53, 7), 1, assert_to_pod(lxc_b))
OVERLAPPING(far_end, IPPROTO_UDP, first_udp(frame, v6, 53, 7), 0x1ffc, assert_to_pod(lxc_b))

/* What stands in a later fragment where flags would be is payload. */
SETUP(no_flags) { guarded_b(); }
FROM_A(no_flags, 1) { first_tcp(frame, v6); }
FROM_A(no_flags, 2)
{
	later(frame, v6, IPPROTO_TCP, 3, 7);
	*(__u8 *)frame_at(frame, frame->l4 + 13) = TCP_SYN | TCP_RST | TCP_FIN;
}
CHECK_N(no_flags, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_B, 80);

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_eq(ct->seen[CT_ORIGINAL], CT_SEEN);
	assert_eq(ct->packets[CT_ORIGINAL], 2);
}

/* ---- echo ---- */

static __always_inline void first_echo(struct frame *f, const bool v6, const bool reply)
{
	const __u8 type = reply ? (v6 ? TYPE6_ECHO_REPLY : TYPE4_ECHO_REPLY) :
				  (v6 ? TYPE6_ECHO : TYPE4_ECHO);

	put_ip_fragment(f, v6, reply ? POD_B : POD_A, reply ? POD_A : POD_B, echo_protocol(v6),
			0 | MORE, 7);
	put_icmp(f, v6, type, 0, 9 << 16 | 1);
	put_payload(f, 16);
	finish(f);
}

SETUP(large_ping)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_INGRESS);
}
FROM_A(large_ping, 1) { first_echo(frame, v6, false); }
CHECK(large_ping) { assert_to_pod(lxc_b); }
FROM_A(large_ping, 2) { later(frame, v6, echo_protocol(v6), 3, 7); }
CHECK_N(large_ping, 2) { assert_to_pod(lxc_b); }
PKTGEN_N(large_ping, 3, from_container, lxc_b) { first_echo(frame, v6, true); }
CHECK_N(large_ping, 3) { assert_to_pod(lxc_a); }
PKTGEN_N(large_ping, 4, from_container, lxc_b)
{
	put_ip_fragment(frame, v6, POD_B, POD_A, echo_protocol(v6), 3, 7);
	put_payload(frame, 24);
	finish(frame);
}
CHECK_N(large_ping, 4)
{
	struct ct_entry *ct = flow_of(v6, echo_protocol(v6), POD_A, 9, POD_B, 9);

	assert_to_pod(lxc_a);
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 2);
	assert_eq(ct->packets[CT_REPLY], 2);
}

/* An error leaves nothing: its later fragments have no ports to go by. */
SETUP(error_in_pieces) { add_cluster(); }
FROM_A(error_in_pieces, 1) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
PKTGEN_N(error_in_pieces, 2, from_container, lxc_b)
{
	put_ip_fragment(frame, v6, POD_B, POD_A, echo_protocol(v6), 0 | MORE, 7);
	put_icmp(frame, v6, v6 ? TYPE6_UNREACHABLE : TYPE4_UNREACHABLE, v6 ? 4 : 3, 0);
	put_ip(frame, v6, POD_A, POD_B, IPPROTO_UDP);
	put_udp(frame, 5000, 53);
	put_payload(frame, 4);
	finish(frame);
}
CHECK_N(error_in_pieces, 2) { assert_to_pod(lxc_a); }
PKTGEN_N(error_in_pieces, 3, from_container, lxc_b)
{
	put_ip_fragment(frame, v6, POD_B, POD_A, echo_protocol(v6), 6, 7);
	put_payload(frame, 24);
	finish(frame);
}
CHECK_N(error_in_pieces, 3) { assert_dropped(DROP_FRAG_NOT_FOUND); }

/* ---- by other ways ---- */

SETUP(from_world) { add_cluster(); }
PKTGEN(from_world, to_container, lxc_a)
{
	context->ingress_ifindex = CONFIG(nic_ifindex);
	put_ip_fragment(frame, v6, WORLD, POD_A, IPPROTO_UDP, 0 | MORE, 7);
	put_udp(frame, 53, 5000);
	put_payload(frame, 16);
	finish(frame);
}
CHECK(from_world) { assert_eq(result->action, TC_ACT_OK); }
PKTGEN_N(from_world, 2, to_container, lxc_a)
{
	context->ingress_ifindex = CONFIG(nic_ifindex);
	put_ip_fragment(frame, v6, WORLD, POD_A, IPPROTO_UDP, 3, 7);
	put_payload(frame, 16);
	finish(frame);
}
CHECK_N(from_world, 2) { assert_eq(result->action, TC_ACT_OK); }
PKTGEN_N(from_world, 3, to_container, lxc_a)
{
	context->ingress_ifindex = CONFIG(nic_ifindex);
	put_ip_fragment(frame, v6, WORLD, POD_A, IPPROTO_UDP, 3, 8);
	put_payload(frame, 16);
	finish(frame);
}
CHECK_N(from_world, 3) { assert_dropped(DROP_FRAG_NOT_FOUND); }

SETUP(through_overlay) { guarded_b(); }
PKTGEN(through_overlay, from_overlay, vxlan)
{
	context->flags |= CONTEXT_TUNNEL;
	context->tunnel_id = ID_A;
	put_ip_fragment(frame, v6, POD_REMOTE, POD_B, IPPROTO_UDP, 0 | MORE, 7);
	put_udp(frame, 5000, 53);
	put_payload(frame, 16);
	finish(frame);
}
CHECK(through_overlay) { assert_to_pod(lxc_b); }
PKTGEN_N(through_overlay, 2, from_overlay, vxlan)
{
	context->flags |= CONTEXT_TUNNEL;
	context->tunnel_id = ID_A;
	put_ip_fragment(frame, v6, POD_REMOTE, POD_B, IPPROTO_UDP, 3, 7);
	put_payload(frame, 16);
	finish(frame);
}
CHECK_N(through_overlay, 2) { assert_to_pod(lxc_b); }

/* ---- what is no fragment ---- */

/* "Don't fragment", and the bit that means nothing. */
PKTGEN4(dont_fragment, from_container, lxc_a)
{
	add_cluster();
	make_udp(frame, v6, POD_A, POD_B, 5000, 53);
	ipv4_of(frame)->frag_off = bpf_htons(0x4000);
	finish_checksums(frame);
}
CHECK4(dont_fragment)
{
	assert_to_pod(lxc_b);
	assert_one_hop_less();
}
PKTGEN4_N(dont_fragment, 2, from_container, lxc_a)
{
	make_udp(frame, v6, POD_A, POD_B, 5000, 53);
	ipv4_of(frame)->frag_off = bpf_htons(0x8000);
	finish_checksums(frame);
}
CHECK4_N(dont_fragment, 2) { assert_to_pod(lxc_b); }

/* An IPv6 fragment header about the whole (RFC 6946): it leaves nothing. */
SETUP6(atomic) { guarded_b(); }
PKTGEN6(atomic, from_container, lxc_a)
{
	put_ip_fragment(frame, v6, POD_A, POD_B, IPPROTO_UDP, 0, 7);
	put_udp(frame, 5000, 53);
	put_payload(frame, 5);
	finish(frame);
}
CHECK6(atomic) { assert_to_pod(lxc_b); }
PKTGEN6_N(atomic, 2, from_container, lxc_a) { later(frame, v6, IPPROTO_UDP, 3, 7); }
CHECK6_N(atomic, 2) { assert_dropped(DROP_FRAG_NOT_FOUND); }

/* Options between the fragment header and the ports: later ones name the options, not UDP. */
SETUP6(options_inside) { guarded_b(); }
PKTGEN6(options_inside, from_container, lxc_a)
{
	put_ip_fragment(frame, v6, POD_A, POD_B, EXT_DESTINATION, 0 | MORE, 7);
	put_extension(frame, IPPROTO_UDP, 1);
	put_udp(frame, 5000, 53);
	put_payload(frame, 8);
	finish(frame);
}
CHECK6(options_inside) { assert_to_pod(lxc_b); }
PKTGEN6_N(options_inside, 2, from_container, lxc_a) { later(frame, v6, EXT_DESTINATION, 3, 7); }
CHECK6_N(options_inside, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_B, 53);

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 2);
}
