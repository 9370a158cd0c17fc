/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors: they belong to the flow that they quote, and to no other. */
#include "tests/lib/scenario.h"

/* A sends; nothing is let in that it has not asked for. */
static __always_inline void closed_a(void)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_INGRESS);
	enforce(SUBJECT_B, DIR_EGRESS);
}

/* An unreachable port, host or network. */
static __always_inline void put_unreachable(struct frame *f, const bool v6, enum host reporter,
					    enum host to)
{
	put_icmp_error(f, v6, reporter, to, v6 ? TYPE6_UNREACHABLE : TYPE4_UNREACHABLE,
		       v6 ? 4 : 3, 0);
}

/* About what A sent from 5000 to 53 of somebody. */
static __always_inline void quote_udp(struct frame *f, const bool v6, enum host destination)
{
	put_ip(f, v6, POD_A, destination, IPPROTO_UDP);
	put_udp(f, 5000, 53);
	finish(f);
}

#define A_ASKS(name, destination)                                               \
	SETUP(name) { closed_a(); }                                             \
	PKTGEN(name, from_container, lxc_a)                                     \
	{                                                                       \
		make_udp(frame, v6, POD_A, destination, 5000, 53);              \
	}
#define FROM_NETWORK context->ingress_ifindex = CONFIG(nic_ifindex)

/* The flow that A began to a host is as it was: an error is no packet of it. */
#define assert_flow_untouched(destination)                                      \
	do {                                                                    \
		struct ct_entry *ct_ = flow_of(v6, IPPROTO_UDP, POD_A, 5000, destination, 53); \
                                                                                \
		test_require(ct_);                                              \
		assert_eq(ct_->packets[CT_ORIGINAL], 1);                        \
		assert_eq(ct_->packets[CT_REPLY], 0);                           \
		assert_eq(ct_->bytes[CT_REPLY], 0);                             \
		assert_eq(ct_->seen[CT_REPLY], 0);                              \
		assert_eq(ct_->expires - ct_->created, CONFIG(ct_any));         \
	} while (0)

/* ---- who may complain ---- */

/* The other end, on this node. It may though its policy forbids it to send. */
A_ASKS(from_peer, POD_B)
PKTGEN_N(from_peer, 2, from_container, lxc_b)
{
	put_unreachable(frame, v6, POD_B, POD_A);
	quote_udp(frame, v6, POD_B);
}
CHECK_N(from_peer, 2)
{
	assert_to_pod(lxc_a);
	assert_one_hop_less();
	assert_flow_untouched(POD_B);
}

/* After an answer of its own, too. */
A_ASKS(from_peer_later, POD_B)
PKTGEN_N(from_peer_later, 2, from_container, lxc_b)
{
	make_udp(frame, v6, POD_B, POD_A, 53, 5000);
}
PKTGEN_N(from_peer_later, 3, from_container, lxc_b)
{
	put_unreachable(frame, v6, POD_B, POD_A);
	quote_udp(frame, v6, POD_B);
}
CHECK_N(from_peer_later, 3)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_B, 53);

	assert_to_pod(lxc_a);
	test_require(ct);
	assert_eq(ct->packets[CT_REPLY], 1);
}

/* A router in between, by way of the stack. */
A_ASKS(from_router, WORLD)
PKTGEN_N(from_router, 2, to_container, lxc_a)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	quote_udp(frame, v6, WORLD);
}
CHECK_N(from_router, 2)
{
	assert_eq(result->action, TC_ACT_OK);
	assert_unchanged();
	assert_flow_untouched(WORLD);
}

/* The node itself, for a pod on another node. */
A_ASKS(from_node, POD_REMOTE)
PKTGEN_N(from_node, 2, to_container, lxc_a)
{
	put_unreachable(frame, v6, ROUTER, POD_A);
	quote_udp(frame, v6, POD_REMOTE);
}
CHECK_N(from_node, 2)
{
	assert_eq(result->action, TC_ACT_OK);
	assert_flow_untouched(POD_REMOTE);
}

/* A node on the way, through the overlay. */
A_ASKS(from_other_node, POD_REMOTE)
PKTGEN_N(from_other_node, 2, from_overlay, vxlan)
{
	context->flags |= CONTEXT_TUNNEL;
	context->tunnel_id = ID_HOST;
	context->tunnel_peer = address4(NODE_OTHER);
	put_unreachable(frame, v6, ROUTER_OTHER, POD_A);
	quote_udp(frame, v6, POD_REMOTE);
}
CHECK_N(from_other_node, 2)
{
	assert_to_pod(lxc_a);
	assert_flow_untouched(POD_REMOTE);
}

/* No pod but the flow's own end: none of them is a router. */
A_ASKS(from_third, WORLD)
PKTGEN_N(from_third, 2, from_container, lxc_b)
{
	put_unreachable(frame, v6, POD_B, POD_A);
	quote_udp(frame, v6, WORLD);
}
CHECK_N(from_third, 2) { assert_dropped(DROP_INVALID_SIP); }

/* ---- what about ---- */

/* No flow, or no longer. */
SETUP(about_nothing) { closed_a(); }
PKTGEN(about_nothing, to_container, lxc_a)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	quote_udp(frame, v6, WORLD);
}
CHECK(about_nothing) { assert_dropped(DROP_UNKNOWN_CT); }

A_ASKS(about_the_past, WORLD)
PKTGEN_N(about_the_past, 2, to_container, lxc_a)
{
	expire(flow_of(v6, IPPROTO_UDP, POD_A, 5000, WORLD, 53));
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	quote_udp(frame, v6, WORLD);
}
CHECK_N(about_the_past, 2) { assert_dropped(DROP_UNKNOWN_CT); }

/* A flow of somebody else than who is told. */
A_ASKS(about_another, WORLD)
PKTGEN_N(about_another, 2, to_container, lxc_b)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_B);
	quote_udp(frame, v6, WORLD);
}
CHECK_N(about_another, 2) { assert_dropped(DROP_CT_INVALID_HDR); }

/* The quoted packet the wrong way round. */
A_ASKS(about_the_answer, WORLD)
PKTGEN_N(about_the_answer, 2, to_container, lxc_a)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	put_ip(frame, v6, WORLD, POD_A, IPPROTO_UDP);
	put_udp(frame, 53, 5000);
	finish(frame);
}
CHECK_N(about_the_answer, 2) { assert_dropped(DROP_CT_INVALID_HDR); }

/* Other ports. */
A_ASKS(about_other_ports, WORLD)
PKTGEN_N(about_other_ports, 2, to_container, lxc_a)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	put_ip(frame, v6, POD_A, WORLD, IPPROTO_UDP);
	put_udp(frame, 5000, 54);
	finish(frame);
}
CHECK_N(about_other_ports, 2) { assert_dropped(DROP_UNKNOWN_CT); }

/* ---- of each protocol ---- */

SETUP(about_tcp) { closed_a(); }
PKTGEN(about_tcp, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, WORLD, 1000, 80, TCP_SYN);
}
PKTGEN_N(about_tcp, 2, to_container, lxc_a)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	put_ip(frame, v6, POD_A, WORLD, IPPROTO_TCP);
	/* Eight bytes of it have to do. */
	put_tcp(frame, 1000, 80, TCP_SYN);
	frame->length -= 12;
	finish(frame);
}
CHECK_N(about_tcp, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, POD_A, 1000, WORLD, 80);

	assert_eq(result->action, TC_ACT_OK);
	test_require(ct);
	assert_eq(ct->seen[CT_ORIGINAL], CT_SEEN);
}

SETUP(about_sctp) { closed_a(); }
PKTGEN(about_sctp, from_container, lxc_a) { make_sctp(frame, v6, POD_A, WORLD, 2905, 9, 1); }
PKTGEN_N(about_sctp, 2, to_container, lxc_a)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	put_ip(frame, v6, POD_A, WORLD, IPPROTO_SCTP);
	put_sctp(frame, 2905, 9, 1);
	finish(frame);
}
CHECK_N(about_sctp, 2) { assert_eq(result->action, TC_ACT_OK); }

SETUP(about_echo) { closed_a(); }
PKTGEN(about_echo, from_container, lxc_a) { make_echo(frame, v6, POD_A, WORLD, 9); }
PKTGEN_N(about_echo, 2, to_container, lxc_a)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	put_ip(frame, v6, POD_A, WORLD, echo_protocol(v6));
	put_icmp(frame, v6, v6 ? TYPE6_ECHO : TYPE4_ECHO, 0, 9 << 16);
	finish(frame);
}
CHECK_N(about_echo, 2) { assert_eq(result->action, TC_ACT_OK); }
/* A's own answer that it never gave. */
PKTGEN_N(about_echo, 3, to_container, lxc_a)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	put_ip(frame, v6, POD_A, WORLD, echo_protocol(v6));
	put_icmp(frame, v6, v6 ? TYPE6_ECHO_REPLY : TYPE4_ECHO_REPLY, 0, 9 << 16);
	finish(frame);
}
CHECK_N(about_echo, 3) { assert_dropped(DROP_UNKNOWN_CT); }

/* An error about an error. */
A_ASKS(about_error, WORLD)
PKTGEN_N(about_error, 2, to_container, lxc_a)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	put_ip(frame, v6, POD_A, WORLD, echo_protocol(v6));
	put_icmp(frame, v6, v6 ? TYPE6_UNREACHABLE : TYPE4_UNREACHABLE, 3, 0);
	finish(frame);
}
CHECK_N(about_error, 2)
{
	assert_dropped(v6 ? DROP_UNKNOWN_ICMP6_TYPE : DROP_UNKNOWN_ICMP4_TYPE);
}

/* About ICMP of the other family: a packet that cannot have been. */
A_ASKS(about_other_icmp, WORLD)
PKTGEN_N(about_other_icmp, 2, to_container, lxc_a)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	put_ip(frame, v6, POD_A, WORLD, echo_protocol(!v6));
	put_icmp(frame, v6, v6 ? TYPE4_ECHO : TYPE6_ECHO, 0, 9 << 16);
	finish(frame);
}
CHECK_N(about_other_icmp, 2) { assert_dropped(DROP_UNKNOWN_L4); }

A_ASKS(about_unknown_protocol, WORLD)
PKTGEN_N(about_unknown_protocol, 2, to_container, lxc_a)
{
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	put_ip(frame, v6, POD_A, WORLD, 47);
	put_payload(frame, 16);
	finish(frame);
}
CHECK_N(about_unknown_protocol, 2) { assert_dropped(DROP_UNKNOWN_L4); }

/* ---- each type ---- */

#define OF_TYPE(name, type4, code4, type6, code6, word, outcome)                \
	A_ASKS(name, WORLD)                                                     \
	PKTGEN_N(name, 2, to_container, lxc_a)                                  \
	{                                                                       \
		FROM_NETWORK;                                                   \
		put_icmp_error(frame, v6, WORLD_CIDR, POD_A, v6 ? type6 : type4, \
			       v6 ? code6 : code4, word);                       \
		quote_udp(frame, v6, WORLD);                                    \
	}                                                                       \
	CHECK_N(name, 2)                                                        \
	{                                                                       \
		outcome;                                                        \
	}
#define RELATED assert_eq(result->action, TC_ACT_OK)

OF_TYPE(too_big, TYPE4_UNREACHABLE, CODE4_FRAGMENTATION_NEEDED, TYPE6_TOO_BIG, 0, 1280, RELATED)
OF_TYPE(time_exceeded, TYPE4_TIME_EXCEEDED, 0, TYPE6_TIME_EXCEEDED, 0, 0, RELATED)
OF_TYPE(reassembly_time, TYPE4_TIME_EXCEEDED, 1, TYPE6_TIME_EXCEEDED, 1, 0, RELATED)
OF_TYPE(parameter_problem, TYPE4_PARAMETER, 0, TYPE6_PARAMETER, 1, 0, RELATED)
/* Source quench and redirects are history, or for routers. */
OF_TYPE(source_quench, 4, 0, 100, 0, 0,
	assert_dropped(v6 ? DROP_UNKNOWN_ICMP6_TYPE : DROP_UNKNOWN_ICMP4_TYPE))
OF_TYPE(redirect, TYPE4_REDIRECT, 1, 137, 0, 0,
	assert_dropped(v6 ? DROP_ND_IGNORED : DROP_UNKNOWN_ICMP4_TYPE))

/* ---- under a change of policy ---- */

/* The flow is no longer allowed: its errors are not either. */
A_ASKS(after_withdrawal, WORLD)
PKTGEN_N(after_withdrawal, 2, to_container, lxc_a)
{
	enforce(SUBJECT_A, DIR_EGRESS);
	next_epoch(SUBJECT_A);
	FROM_NETWORK;
	put_unreachable(frame, v6, WORLD_CIDR, POD_A);
	quote_udp(frame, v6, WORLD);
}
CHECK_N(after_withdrawal, 2) { assert_dropped(DROP_POLICY); }
