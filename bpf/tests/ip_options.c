/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IPv4 options: of any length, and in the way of nothing. */
#include "tests/lib/scenario.h"

static __always_inline void guarded_b(void)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_TCP, 80));
}

static __always_inline void tcp_with_options(struct frame *f, const __u32 words, __u16 dport)
{
	struct iphdr *ip;

	put_ethernet(f, ETH_P_IP);
	ip = put_ipv4(f, POD_A, POD_B, IPPROTO_TCP);
	put_ipv4_options(f, ip, words);
	put_tcp(f, 1000, dport, TCP_SYN);
	put_payload(f, 5);
	finish(f);
}

#define WITH_WORDS(n)                                                                   \
	SETUP4(words_##n) { guarded_b(); }                                              \
	PKTGEN4(words_##n, from_container, lxc_a) { tcp_with_options(frame, n, 80); }   \
	CHECK4(words_##n)                                                               \
	{                                                                               \
		assert_to_pod(lxc_b);                                                   \
		assert_one_hop_less();                                                  \
		test_assert(flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_B, 80));          \
	}                                                                               \
	PKTGEN4_N(words_##n, 2, from_container, lxc_a)                                  \
	{                                                                               \
		tcp_with_options(frame, n, 81);                                         \
	}                                                                               \
	CHECK4_N(words_##n, 2) { assert_dropped(DROP_POLICY); }

WITH_WORDS(1)
WITH_WORDS(2)
WITH_WORDS(3)
WITH_WORDS(4)
WITH_WORDS(5)
WITH_WORDS(6)
WITH_WORDS(7)
WITH_WORDS(8)
WITH_WORDS(9)
WITH_WORDS(10)

/* What they say is not read: a source route is the stack's to refuse. */
SETUP4(source_route) { guarded_b(); }
PKTGEN4(source_route, from_container, lxc_a)
{
	__u8 *options;

	tcp_with_options(frame, 2, 80);
	options = frame_at(frame, frame->l3 + 20);
	options[0] = 0x83;
	options[1] = 7;
	options[2] = 4;
	finish_checksums(frame);
}
CHECK4(source_route)
{
	assert_to_pod(lxc_b);
	assert_one_hop_less();
}

/* An error about a packet with options. */
SETUP4(error_about) { guarded_b(); }
PKTGEN4(error_about, from_container, lxc_a) { tcp_with_options(frame, 3, 80); }
PKTGEN4_N(error_about, 2, from_container, lxc_b)
{
	struct iphdr *inner;

	put_icmp_error(frame, v6, POD_B, POD_A, TYPE4_UNREACHABLE, 3, 0);
	inner = put_ipv4(frame, POD_A, POD_B, IPPROTO_TCP);
	put_ipv4_options(frame, inner, 3);
	put_tcp(frame, 1000, 80, TCP_SYN);
	finish(frame);
}
CHECK4_N(error_about, 2)
{
	assert_to_pod(lxc_a);
	assert_one_hop_less();
}

/* Through the tunnel and the stack. */
SETUP4(routed) { guarded_b(); }
PKTGEN4(routed, to_container, lxc_b)
{
	context->ingress_ifindex = CONFIG(lxc_a_ifindex);
	context->mark = mark_of_identity(ID_A);
	tcp_with_options(frame, 10, 81);
}
CHECK4(routed) { assert_dropped(DROP_POLICY); }
PKTGEN4_N(routed, 2, to_container, lxc_b)
{
	context->ingress_ifindex = CONFIG(lxc_a_ifindex);
	context->mark = mark_of_identity(ID_A);
	tcp_with_options(frame, 10, 80);
}
CHECK4_N(routed, 2)
{
	assert_eq(result->action, TC_ACT_OK);
	assert_unchanged();
}
