/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TCP flows: states, lifetimes, and when a packet starts over. */
#include "tests/lib/scenario.h"

#define A_SENDS(name, n, flags)                                                 \
	PKTGEN_N(name, n, from_container, lxc_a)                                \
	{                                                                       \
		make_tcp(frame, v6, POD_A, POD_B, 1000, 80, flags);             \
	}
#define B_SENDS(name, n, flags)                                                 \
	PKTGEN_N(name, n, from_container, lxc_b)                                \
	{                                                                       \
		make_tcp(frame, v6, POD_B, POD_A, 80, 1000, flags);             \
	}
#define FLOW flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_B, 80)

/* The flow lives so much longer from now; the clock may have ticked since. */
#define assert_lives(ct, ticks)                                                 \
	do {                                                                    \
		assert_le((ct)->expires, ct_now() + (ticks));                   \
		assert_ge((ct)->expires, ct_now() + (ticks) - 1);               \
	} while (0)

/* A new flow lives for the time that a handshake may take. */
SETUP(syn) { add_cluster(); }
A_SENDS(syn, 1, TCP_SYN)
CHECK(syn)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_b);
	assert_one_hop_less();
	test_require(ct);
	assert_eq(ct->expires - ct->created, CONFIG(ct_tcp_syn));
	assert_eq(ct->seen[CT_ORIGINAL], CT_SEEN);
	assert_eq(ct->seen[CT_REPLY], 0);
	assert_eq(ct->packets[CT_ORIGINAL], 1);
	assert_eq(ct->packets[CT_REPLY], 0);
	assert_eq(ct->bytes[CT_ORIGINAL], sent->length);
	assert_eq(ct->side[DIR_EGRESS].owner, ENDPOINT_A);
	assert_eq(ct->side[DIR_EGRESS].identity, ID_B);
	assert_eq(ct->side[DIR_EGRESS].subject, SUBJECT_A);
	assert_eq(ct->side[DIR_INGRESS].owner, ENDPOINT_B);
	assert_eq(ct->side[DIR_INGRESS].identity, ID_A);
	assert_eq(ct->side[DIR_INGRESS].subject, SUBJECT_B);
}
/* More of them change nothing in that. */
A_SENDS(syn, 2, TCP_SYN)
CHECK_N(syn, 2)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_lives(ct, CONFIG(ct_tcp_syn));
	assert_eq(ct->packets[CT_ORIGINAL], 2);
}
/* With the first answer it is established. */
B_SENDS(syn, 3, TCP_SYN | TCP_ACK)
CHECK_N(syn, 3)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_a);
	assert_one_hop_less();
	test_require(ct);
	assert_lives(ct, CONFIG(ct_tcp_established));
	assert_eq(ct->seen[CT_REPLY], CT_SEEN);
	assert_eq(ct->packets[CT_REPLY], 1);
	assert_eq(ct->bytes[CT_REPLY], sent->length);
}
A_SENDS(syn, 4, TCP_ACK)
CHECK_N(syn, 4)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_b);
	assert_one_hop_less();
	test_require(ct);
	assert_lives(ct, CONFIG(ct_tcp_established));
	assert_eq(ct->packets[CT_ORIGINAL], 3);
	assert_eq(ct->bytes[CT_ORIGINAL], 3 * sent->length);
}

/* The end of one direction is not the end of the flow. */
SETUP(fin) { add_cluster(); }
A_SENDS(fin, 1, TCP_SYN)
B_SENDS(fin, 2, TCP_SYN | TCP_ACK)
A_SENDS(fin, 3, TCP_FIN | TCP_ACK)
CHECK_N(fin, 3)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_eq(ct->seen[CT_ORIGINAL], CT_SEEN | CT_SEEN_FIN);
	assert_lives(ct, CONFIG(ct_tcp_established));
}
B_SENDS(fin, 4, TCP_ACK)
CHECK_N(fin, 4)
{
	struct ct_entry *ct = FLOW;

	test_require(ct);
	assert_lives(ct, CONFIG(ct_tcp_established));
}
B_SENDS(fin, 5, TCP_FIN | TCP_ACK)
CHECK_N(fin, 5)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_a);
	test_require(ct);
	assert_eq(ct->seen[CT_REPLY], CT_SEEN | CT_SEEN_FIN);
	assert_lives(ct, CONFIG(ct_tcp_closing));
}
/* What still comes belongs to it and does not revive it. */
A_SENDS(fin, 6, TCP_ACK)
CHECK_N(fin, 6)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_lives(ct, CONFIG(ct_tcp_closing));
	assert_eq(ct->packets[CT_ORIGINAL], 3);
}
/* A new connection on the same ports is a new flow. */
A_SENDS(fin, 7, TCP_SYN)
CHECK_N(fin, 7)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_eq(ct->seen[CT_ORIGINAL], CT_SEEN);
	assert_eq(ct->seen[CT_REPLY], 0);
	assert_eq(ct->packets[CT_ORIGINAL], 1);
	assert_eq(ct->packets[CT_REPLY], 0);
	assert_lives(ct, CONFIG(ct_tcp_syn));
}

#define RESET_BY(name, who, device)                                             \
	SETUP(name) { add_cluster(); }                                          \
	A_SENDS(name, 1, TCP_SYN)                                               \
	B_SENDS(name, 2, TCP_SYN | TCP_ACK)                                     \
	who(name, 3, TCP_RST | TCP_ACK)                                         \
	CHECK_N(name, 3)                                                        \
	{                                                                       \
		struct ct_entry *ct = FLOW;                                     \
                                                                                \
		assert_to_pod(device);                                          \
		test_require(ct);                                               \
		assert_lives(ct, CONFIG(ct_tcp_closing));                       \
	}                                                                       \
	A_SENDS(name, 4, TCP_SYN)                                               \
	CHECK_N(name, 4)                                                        \
	{                                                                       \
		struct ct_entry *ct = FLOW;                                     \
                                                                                \
		assert_to_pod(lxc_b);                                           \
		test_require(ct);                                               \
		assert_eq(ct->packets[CT_ORIGINAL], 1);                         \
		assert_eq(ct->seen[CT_REPLY], 0);                               \
	}

RESET_BY(reset_by_initiator, A_SENDS, lxc_b)
RESET_BY(reset_by_responder, B_SENDS, lxc_a)

/* A refused connection. */
SETUP(refused) { add_cluster(); }
A_SENDS(refused, 1, TCP_SYN)
B_SENDS(refused, 2, TCP_RST | TCP_ACK)
CHECK_N(refused, 2)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_a);
	test_require(ct);
	assert_eq(ct->seen[CT_REPLY], CT_SEEN | CT_SEEN_RST);
	assert_lives(ct, CONFIG(ct_tcp_closing));
}

/* A SYN in the middle of a connection, its own way: it goes on. */
SETUP(syn_in_the_middle) { add_cluster(); }
A_SENDS(syn_in_the_middle, 1, TCP_SYN)
B_SENDS(syn_in_the_middle, 2, TCP_SYN | TCP_ACK)
A_SENDS(syn_in_the_middle, 3, TCP_SYN)
CHECK_N(syn_in_the_middle, 3)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 2);
	assert_eq(ct->packets[CT_REPLY], 1);
}

/* Against its direction it is the other's connection, and judged as that. */
SETUP(syn_against) { add_cluster(); }
A_SENDS(syn_against, 1, TCP_SYN)
B_SENDS(syn_against, 2, TCP_SYN | TCP_ACK)
B_SENDS(syn_against, 3, TCP_SYN)
CHECK_N(syn_against, 3)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_a);
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 1);
	assert_eq(ct->packets[CT_REPLY], 0);
	assert_eq(ct->side[DIR_EGRESS].owner, ENDPOINT_B);
	assert_eq(ct->side[DIR_INGRESS].owner, ENDPOINT_A);
}

SETUP(syn_against_denied)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_INGRESS);
}
A_SENDS(syn_against_denied, 1, TCP_SYN)
B_SENDS(syn_against_denied, 2, TCP_SYN | TCP_ACK)
CHECK_N(syn_against_denied, 2) { assert_to_pod(lxc_a); }
B_SENDS(syn_against_denied, 3, TCP_SYN)
CHECK_N(syn_against_denied, 3)
{
	struct ct_entry *ct = FLOW;

	assert_dropped(DROP_POLICY);
	/* What was there is not harmed by an attempt that failed. */
	test_require(ct);
	assert_eq(ct->side[DIR_EGRESS].owner, ENDPOINT_A);
	assert_eq(ct->packets[CT_REPLY], 1);
}
A_SENDS(syn_against_denied, 4, TCP_ACK)
CHECK_N(syn_against_denied, 4) { assert_to_pod(lxc_b); }

/* An answer alone is a flow of its own, to be allowed by itself. */
#define STARTS_WITH(name, flags)                                                \
	SETUP(name)                                                             \
	{                                                                       \
		add_cluster();                                                  \
		enforce(SUBJECT_A, DIR_INGRESS);                                \
	}                                                                       \
	B_SENDS(name, 1, flags)                                                 \
	CHECK(name)                                                             \
	{                                                                       \
		assert_dropped(DROP_POLICY);                                    \
		test_assert(!FLOW);                                             \
	}

STARTS_WITH(lone_syn_ack, TCP_SYN | TCP_ACK)
STARTS_WITH(lone_ack, TCP_ACK)
STARTS_WITH(lone_fin, TCP_FIN | TCP_ACK)
STARTS_WITH(lone_reset, TCP_RST)
STARTS_WITH(no_flags, 0)
STARTS_WITH(all_flags, 0xff)

/* Idle for too long it is over: the answer that comes then is nobody's. */
#define EXPIRES(name, prepared, who, late)                                      \
	SETUP(name)                                                             \
	{                                                                       \
		add_cluster();                                                  \
		enforce(SUBJECT_A, DIR_INGRESS);                                \
	}                                                                       \
	A_SENDS(name, 1, TCP_SYN)                                               \
	B_SENDS(name, 2, prepared)                                              \
	PKTGEN_N(name, 3, from_container, lxc_b)                                \
	{                                                                       \
		expire(FLOW);                                                   \
		make_tcp(frame, v6, POD_B, POD_A, 80, 1000, late);              \
	}                                                                       \
	CHECK_N(name, 3)                                                        \
	{                                                                       \
		assert_dropped(DROP_POLICY);                                    \
	}

EXPIRES(expired_established, TCP_SYN | TCP_ACK, B_SENDS, TCP_ACK)
EXPIRES(expired_closing, TCP_RST, B_SENDS, TCP_RST)

/* In its last tick it is not. */
SETUP(last_tick)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_INGRESS);
}
A_SENDS(last_tick, 1, TCP_SYN)
PKTGEN_N(last_tick, 2, from_container, lxc_b)
{
	struct ct_entry *ct = FLOW;

	/* A tick is a second: one more, lest it ends before the packet is there. */
	if (ct)
		ct->expires = ct_now() + 1;
	make_tcp(frame, v6, POD_B, POD_A, 80, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(last_tick, 2)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_a);
	test_require(ct);
	assert_lives(ct, CONFIG(ct_tcp_established));
}

/* The initiator's packet after that starts anew. */
SETUP(expired_initiator) { add_cluster(); }
A_SENDS(expired_initiator, 1, TCP_SYN)
B_SENDS(expired_initiator, 2, TCP_SYN | TCP_ACK)
PKTGEN_N(expired_initiator, 3, from_container, lxc_a)
{
	expire(FLOW);
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(expired_initiator, 3)
{
	struct ct_entry *ct = FLOW;

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 1);
	assert_eq(ct->seen[CT_REPLY], 0);
	assert_lives(ct, CONFIG(ct_tcp_syn));
}

/* Other ports, another flow. */
SETUP(other_ports) { add_cluster(); }
A_SENDS(other_ports, 1, TCP_SYN)
PKTGEN_N(other_ports, 2, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_B, 1001, 80, TCP_SYN);
}
CHECK_N(other_ports, 2)
{
	struct ct_entry *first = FLOW;
	struct ct_entry *second = flow_of(v6, IPPROTO_TCP, POD_A, 1001, POD_B, 80);

	test_require(first);
	test_require(second);
	assert_eq(first->packets[CT_ORIGINAL], 1);
	assert_eq(second->packets[CT_ORIGINAL], 1);
}
