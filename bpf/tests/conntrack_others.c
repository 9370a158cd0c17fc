/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows of UDP, SCTP and ICMP echo. */
#include "tests/lib/scenario.h"

#define assert_lives(ct, ticks)                                                 \
	do {                                                                    \
		assert_le((ct)->expires, ct_now() + (ticks));                   \
		assert_ge((ct)->expires, ct_now() + (ticks) - 1);               \
	} while (0)

/* Two ends, each of which lets nothing in that it has not asked for. */
static __always_inline void closed_pods(void)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_INGRESS);
}

/* ---- UDP ---- */

SETUP(udp) { closed_pods(); }
PKTGEN(udp, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
CHECK(udp)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_B, 53);

	assert_to_pod(lxc_b);
	assert_one_hop_less();
	test_require(ct);
	assert_eq(ct->expires - ct->created, CONFIG(ct_any));
	assert_eq(ct->packets[CT_ORIGINAL], 1);
	assert_eq(ct->bytes[CT_ORIGINAL], sent->length);
}
PKTGEN_N(udp, 2, from_container, lxc_b) { make_udp(frame, v6, POD_B, POD_A, 53, 5000); }
CHECK_N(udp, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_B, 53);

	assert_to_pod(lxc_a);
	assert_one_hop_less();
	test_require(ct);
	assert_lives(ct, CONFIG(ct_any));
	assert_eq(ct->packets[CT_REPLY], 1);
}
/* An answer from another port is none. */
PKTGEN_N(udp, 3, from_container, lxc_b) { make_udp(frame, v6, POD_B, POD_A, 54, 5000); }
CHECK_N(udp, 3) { assert_dropped(DROP_POLICY); }
PKTGEN_N(udp, 4, from_container, lxc_b) { make_udp(frame, v6, POD_B, POD_A, 53, 5001); }
CHECK_N(udp, 4) { assert_dropped(DROP_POLICY); }
/* Nor is one that comes too late. */
PKTGEN_N(udp, 5, from_container, lxc_b)
{
	expire(flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_B, 53));
	make_udp(frame, v6, POD_B, POD_A, 53, 5000);
}
CHECK_N(udp, 5) { assert_dropped(DROP_POLICY); }

/* The same port at both ends. */
SETUP(udp_same_ports) { closed_pods(); }
PKTGEN(udp_same_ports, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 123, 123); }
PKTGEN_N(udp_same_ports, 2, from_container, lxc_b)
{
	make_udp(frame, v6, POD_B, POD_A, 123, 123);
}
CHECK_N(udp_same_ports, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, POD_A, 123, POD_B, 123);

	assert_to_pod(lxc_a);
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 1);
	assert_eq(ct->packets[CT_REPLY], 1);
}

/* TCP with the same ports is another flow. */
SETUP(udp_is_not_tcp) { closed_pods(); }
PKTGEN(udp_is_not_tcp, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
PKTGEN_N(udp_is_not_tcp, 2, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, POD_A, 53, 5000, TCP_ACK);
}
CHECK_N(udp_is_not_tcp, 2) { assert_dropped(DROP_POLICY); }

/* A UDP payload that looks like TCP flags closes nothing. */
SETUP(udp_has_no_flags) { closed_pods(); }
PKTGEN(udp_has_no_flags, from_container, lxc_a)
{
	make_udp(frame, v6, POD_A, POD_B, 5000, 53);
	*(__u8 *)frame_at(frame, frame->l4 + 13) = TCP_RST | TCP_FIN | TCP_SYN;
	finish_checksums(frame);
}
CHECK(udp_has_no_flags)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_B, 53);

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_eq(ct->seen[CT_ORIGINAL], CT_SEEN);
}

/* ---- SCTP ---- */

SETUP(sctp) { closed_pods(); }
PKTGEN(sctp, from_container, lxc_a) { make_sctp(frame, v6, POD_A, POD_B, 2905, 9, 1); }
CHECK(sctp)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_SCTP, POD_A, 2905, POD_B, 9);

	assert_to_pod(lxc_b);
	assert_one_hop_less();
	assert_eq(sctp_checksum(frame), ((struct sctp_header *)frame_at(frame, frame->l4))->checksum);
	test_require(ct);
	assert_eq(ct->expires - ct->created, CONFIG(ct_any));
}
PKTGEN_N(sctp, 2, from_container, lxc_b) { make_sctp(frame, v6, POD_B, POD_A, 9, 2905, 2); }
CHECK_N(sctp, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_SCTP, POD_A, 2905, POD_B, 9);

	assert_to_pod(lxc_a);
	test_require(ct);
	assert_eq(ct->packets[CT_REPLY], 1);
}
PKTGEN_N(sctp, 3, from_container, lxc_b) { make_sctp(frame, v6, POD_B, POD_A, 10, 2905, 2); }
CHECK_N(sctp, 3) { assert_dropped(DROP_POLICY); }

/* ---- echo ---- */

#define ECHO_FLOW(asker, answerer, id) flow_of(v6, echo_protocol(v6), asker, id, answerer, id)

SETUP(echo) { closed_pods(); }
PKTGEN(echo, from_container, lxc_a) { make_echo(frame, v6, POD_A, POD_B, 77); }
CHECK(echo)
{
	struct ct_entry *ct = ECHO_FLOW(POD_A, POD_B, 77);

	assert_to_pod(lxc_b);
	assert_one_hop_less();
	test_require(ct);
	assert_eq(ct->expires - ct->created, CONFIG(ct_any));
}
PKTGEN_N(echo, 2, from_container, lxc_b) { make_echo_reply(frame, v6, POD_B, POD_A, 77); }
CHECK_N(echo, 2)
{
	struct ct_entry *ct = ECHO_FLOW(POD_A, POD_B, 77);

	assert_to_pod(lxc_a);
	assert_one_hop_less();
	test_require(ct);
	assert_eq(ct->packets[CT_REPLY], 1);
}
/* Nobody asked with that identifier, or that way. */
PKTGEN_N(echo, 3, from_container, lxc_b) { make_echo_reply(frame, v6, POD_B, POD_A, 78); }
CHECK_N(echo, 3) { assert_dropped(DROP_UNKNOWN_CT); }
PKTGEN_N(echo, 4, from_container, lxc_a) { make_echo_reply(frame, v6, POD_A, POD_B, 77); }
CHECK_N(echo, 4) { assert_dropped(DROP_UNKNOWN_CT); }
/* The other's request with the same identifier is another flow, and A takes none. */
PKTGEN_N(echo, 5, from_container, lxc_b) { make_echo(frame, v6, POD_B, POD_A, 77); }
CHECK_N(echo, 5) { assert_dropped(DROP_POLICY); }
PKTGEN_N(echo, 6, from_container, lxc_b)
{
	expire(ECHO_FLOW(POD_A, POD_B, 77));
	make_echo_reply(frame, v6, POD_B, POD_A, 77);
}
CHECK_N(echo, 6) { assert_dropped(DROP_UNKNOWN_CT); }

SETUP(echo_both_ways) { add_cluster(); }
PKTGEN(echo_both_ways, from_container, lxc_a) { make_echo(frame, v6, POD_A, POD_B, 5); }
PKTGEN_N(echo_both_ways, 2, from_container, lxc_b) { make_echo(frame, v6, POD_B, POD_A, 5); }
CHECK_N(echo_both_ways, 2)
{
	assert_to_pod(lxc_a);
	test_assert(ECHO_FLOW(POD_A, POD_B, 5) && ECHO_FLOW(POD_B, POD_A, 5));
}
PKTGEN_N(echo_both_ways, 3, from_container, lxc_b)
{
	make_echo_reply(frame, v6, POD_B, POD_A, 5);
}
CHECK_N(echo_both_ways, 3)
{
	struct ct_entry *mine = ECHO_FLOW(POD_A, POD_B, 5), *theirs = ECHO_FLOW(POD_B, POD_A, 5);

	assert_to_pod(lxc_a);
	test_require(mine);
	test_require(theirs);
	assert_eq(mine->packets[CT_REPLY], 1);
	assert_eq(theirs->packets[CT_REPLY], 0);
}

/* Echo's code does not matter; its identifier 0 is as good as any. */
SETUP(echo_zero) { closed_pods(); }
PKTGEN(echo_zero, from_container, lxc_a) { make_echo(frame, v6, POD_A, POD_B, 0); }
CHECK(echo_zero) { assert_to_pod(lxc_b); }
PKTGEN_N(echo_zero, 2, from_container, lxc_b) { make_echo_reply(frame, v6, POD_B, POD_A, 0); }
CHECK_N(echo_zero, 2) { assert_to_pod(lxc_a); }

/* ---- the world ---- */

/* Its answers come by the stack; what it starts is judged as the world. */
SETUP(world_answers)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_INGRESS);
}
PKTGEN(world_answers, from_container, lxc_a) { make_udp(frame, v6, POD_A, WORLD, 5000, 53); }
CHECK(world_answers)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, POD_A, 5000, WORLD, 53);

	assert_to_network();
	test_require(ct);
	assert_eq(ct->side[DIR_EGRESS].identity, ID_WORLD);
	assert_eq(ct->side[DIR_INGRESS].owner, 0);
}
PKTGEN_N(world_answers, 2, to_container, lxc_a)
{
	context->ingress_ifindex = CONFIG(nic_ifindex);
	make_udp(frame, v6, WORLD, POD_A, 53, 5000);
}
CHECK_N(world_answers, 2) { assert_eq(result->action, TC_ACT_OK); }
PKTGEN_N(world_answers, 3, to_container, lxc_a)
{
	context->ingress_ifindex = CONFIG(nic_ifindex);
	make_udp(frame, v6, WORLD, POD_A, 53, 5001);
}
CHECK_N(world_answers, 3) { assert_dropped(DROP_POLICY); }
