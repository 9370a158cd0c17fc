/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is reported: drops, verdicts and traces, to whom it may concern; and what is counted in any case. */
#include "tests/lib/scenario.h"

/* B takes TCP 80 from A, by rule 31 of revision 7. */
static __always_inline void guarded_b(void)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_TCP, 80, .cookie = 31));
}

/* The addresses in an event. */
#define assert_event_ends(event, source, destination)                                   \
	do {                                                                            \
		struct in6 from_ = {}, to_ = {};                                        \
		if (v6) {                                                               \
			from_ = address6(source);                                       \
			to_ = address6(destination);                                    \
		} else {                                                                \
			from_.w[0] = address4(source);                                  \
			to_.w[0] = address4(destination);                               \
		}                                                                       \
		assert_eq((event)->family, v6 ? 6 : 4);                                 \
		test_assert(in6_equal(&(event)->saddr, &from_));                        \
		test_assert(in6_equal(&(event)->daddr, &to_));                          \
	} while (0)

/* The captured bytes are the sent frame's first ones. */
static __always_inline bool captured_matches(const struct event *e, struct frame *sent)
{
	const __u64 *a = (const void *)e->bytes, *b = (const void *)sent->data;
	__u64 difference = 0;
	int i;

	for (i = 0; i < EVENT_CAPTURE / 8; i++)
		difference |= a[i] ^ b[i];
	return !difference;
}

/* ---- drops ---- */

SETUP(drop) { guarded_b(); }
PKTGEN(drop, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_B, 1000, 81, TCP_SYN | TCP_ACK);
}
CHECK(drop)
{
	const struct event *e = test_event(0);

	assert_dropped(DROP_POLICY);
	assert_eq(result->events, 1);
	test_require(e);
	assert_eq(e->kind, EVENT_DROP);
	assert_eq(e->reason, DROP_POLICY);
	assert_eq(e->direction, DIR_INGRESS);
	assert_eq(e->verdict, VERDICT_DENY);
	assert_ne(e->file, 0);
	assert_ne(e->line, 0);
	assert_eq(e->ifindex, CONFIG(lxc_a_ifindex));
	assert_eq(e->endpoint_id, ENDPOINT_B);
	assert_eq(e->src_identity, ID_A);
	assert_eq(e->dst_identity, ID_B);
	assert_eq(e->rule_cookie, 0);
	assert_eq(e->policy_revision, 7);
	assert_event_ends(e, POD_A, POD_B);
	assert_eq(e->sport, bpf_htons(1000));
	assert_eq(e->dport, bpf_htons(81));
	assert_eq(e->protocol, IPPROTO_TCP);
	assert_eq(e->tcp_flags, TCP_SYN | TCP_ACK);
	assert_eq(e->length, sent->length);
	assert_eq(e->captured, sent->length < EVENT_CAPTURE ? sent->length : EVENT_CAPTURE);
	test_assert(captured_matches(e, sent));
	assert_le(e->time, bpf_ktime_get_ns());
	assert_ge(e->time, bpf_ktime_get_ns() - 60 * 1000000000ULL);
}

SETUP(drop_by_rule)
{
	add_cluster();
	add_rule(SUBJECT_A, DIR_EGRESS, RULE(ID_WORLD, IPPROTO_UDP, 53, .deny = true, .cookie = 77));
}
PKTGEN(drop_by_rule, from_container, lxc_a) { make_udp(frame, v6, POD_A, WORLD, 5000, 53); }
CHECK(drop_by_rule)
{
	const struct event *e = test_event(0);

	assert_dropped(DROP_POLICY_DENY);
	test_require(e);
	assert_eq(e->reason, DROP_POLICY_DENY);
	assert_eq(e->direction, DIR_EGRESS);
	assert_eq(e->endpoint_id, ENDPOINT_A);
	assert_eq(e->src_identity, ID_A);
	assert_eq(e->dst_identity, ID_WORLD);
	assert_eq(e->rule_cookie, 77);
	assert_event_ends(e, POD_A, WORLD);
}

/* A large packet is captured in part. */
SETUP(drop_large) { guarded_b(); }
PKTGEN(drop_large, from_container, lxc_a)
{
	put_ip(frame, v6, POD_A, POD_B, IPPROTO_UDP);
	put_udp(frame, 5000, 53);
	put_payload(frame, 1200);
	finish(frame);
}
CHECK(drop_large)
{
	const struct event *e = test_event(0);

	assert_dropped(DROP_POLICY);
	test_require(e);
	assert_eq(e->length, sent->length);
	assert_eq(e->captured, EVENT_CAPTURE);
	test_assert(captured_matches(e, sent));
}

/* A small one wholly, and nothing behind it. */
SETUP4(drop_small) { add_cluster(); }
PKTGEN4(drop_small, from_container, lxc_a)
{
	put_ethernet(frame, 0x88cc);
	put_payload(frame, 3);
}
CHECK4(drop_small)
{
	const struct event *e = test_event(0);

	assert_dropped(DROP_UNKNOWN_L3);
	test_require(e);
	assert_eq(e->length, 17);
	assert_eq(e->captured, 17);
	test_assert(captured_matches(e, sent));
	assert_eq(e->family, 0);
	assert_eq(e->src_identity, ID_A);
}

/* What a forger claims is reported as claimed, and who it is beside it. */
SETUP(drop_forged) { add_cluster(); }
PKTGEN(drop_forged, from_container, lxc_a) { make_udp(frame, v6, POD_REMOTE, POD_B, 5000, 53); }
CHECK(drop_forged)
{
	const struct event *e = test_event(0);

	assert_dropped(DROP_INVALID_SIP);
	assert_eq(counted(DROP_INVALID_SIP, DIR_EGRESS), 1);
	test_require(e);
	assert_event_ends(e, POD_REMOTE, POD_B);
	assert_eq(e->src_identity, ID_A);
	assert_eq(e->endpoint_id, ENDPOINT_A);
	assert_eq(e->direction, DIR_EGRESS);
}

/* From the overlay. */
SETUP(drop_from_overlay) { guarded_b(); }
PKTGEN(drop_from_overlay, from_overlay, vxlan)
{
	context->flags |= CONTEXT_TUNNEL;
	context->tunnel_id = ID_POD_REMOTE;
	make_udp(frame, v6, POD_REMOTE, POD_B, 5000, 53);
}
CHECK(drop_from_overlay)
{
	const struct event *e = test_event(0);

	assert_dropped(DROP_POLICY);
	test_require(e);
	assert_eq(e->ifindex, CONFIG(vxlan_ifindex));
	assert_eq(e->src_identity, ID_POD_REMOTE);
	assert_eq(e->dst_identity, ID_B);
	assert_eq(e->endpoint_id, ENDPOINT_B);
	assert_eq(e->direction, DIR_INGRESS);
}

/* To a pod from the stack. */
SETUP(drop_from_stack) { guarded_b(); }
PKTGEN(drop_from_stack, to_container, lxc_b)
{
	context->ingress_ifindex = CONFIG(nic_ifindex);
	make_udp(frame, v6, WORLD, POD_B, 5000, 53);
}
CHECK(drop_from_stack)
{
	const struct event *e = test_event(0);

	assert_dropped(DROP_POLICY);
	test_require(e);
	assert_eq(e->ifindex, CONFIG(lxc_b_ifindex));
	assert_eq(e->src_identity, ID_WORLD);
	assert_eq(e->dst_identity, ID_B);
}

/* An error is reported with its own addresses and the flow's ports, turned round. */
SETUP(drop_error) { add_cluster(); }
PKTGEN(drop_error, to_container, lxc_a)
{
	context->ingress_ifindex = CONFIG(nic_ifindex);
	put_icmp_error(frame, v6, WORLD_CIDR, POD_A, v6 ? TYPE6_UNREACHABLE : TYPE4_UNREACHABLE, 3, 0);
	put_ip(frame, v6, POD_A, WORLD, IPPROTO_UDP);
	put_udp(frame, 5000, 53);
	finish(frame);
}
CHECK(drop_error)
{
	const struct event *e = test_event(0);

	assert_dropped(DROP_UNKNOWN_CT);
	test_require(e);
	assert_event_ends(e, WORLD_CIDR, POD_A);
	assert_eq(e->sport, bpf_htons(53));
	assert_eq(e->dport, bpf_htons(5000));
	assert_eq(e->protocol, IPPROTO_UDP);
}

/* Each of many. */
SETUP(drop_many) { guarded_b(); }
PKTGEN(drop_many, from_container, lxc_a)
{
	context->repeat = 5;
	make_udp(frame, v6, POD_A, POD_B, 5000, 53);
}
CHECK(drop_many)
{
	assert_eq(result->action, TC_ACT_SHOT);
	assert_eq(result->events, 5);
	assert_eq(counted(DROP_POLICY, DIR_INGRESS), 5);
	assert_eq(counted_bytes(DROP_POLICY, DIR_INGRESS), 5 * sent->length);
}

/* ---- nobody reads ---- */

SETUP(unread) { guarded_b(); set_node_flags(0); }
PKTGEN(unread, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
CHECK(unread)
{
	assert_dropped(DROP_POLICY);
	assert_eq(result->events, 0);
}
PKTGEN_N(unread, 2, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_SYN);
}
CHECK_N(unread, 2)
{
	assert_to_pod(lxc_b);
	assert_eq(result->events, 0);
}

/* ---- verdicts ---- */

SETUP(verdict)
{
	guarded_b();
	enforce(SUBJECT_A, DIR_EGRESS);
	add_rule(SUBJECT_A, DIR_EGRESS, RULE(ID_B, .cookie = 30));
}
PKTGEN(verdict, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_SYN);
}
CHECK(verdict)
{
	const struct event *egress = test_event(0), *ingress = test_event(1);

	assert_to_pod(lxc_b);
	assert_eq(result->events, 2);
	test_require(egress);
	assert_eq(egress->kind, EVENT_VERDICT);
	assert_eq(egress->verdict, VERDICT_ALLOW);
	assert_eq(egress->direction, DIR_EGRESS);
	assert_eq(egress->endpoint_id, ENDPOINT_A);
	assert_eq(egress->rule_cookie, 30);
	assert_eq(egress->reason, 0);
	test_require(ingress);
	assert_eq(ingress->kind, EVENT_VERDICT);
	assert_eq(ingress->verdict, VERDICT_ALLOW);
	assert_eq(ingress->direction, DIR_INGRESS);
	assert_eq(ingress->endpoint_id, ENDPOINT_B);
	assert_eq(ingress->rule_cookie, 31);
	assert_eq(ingress->policy_revision, 7);
	assert_eq(ingress->src_identity, ID_A);
	assert_eq(ingress->dst_identity, ID_B);
	assert_event_ends(ingress, POD_A, POD_B);
	assert_eq(ingress->dport, bpf_htons(80));
}
/* Once a flow. */
PKTGEN_N(verdict, 2, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(verdict, 2) { assert_eq(result->events, 0); }
PKTGEN_N(verdict, 3, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, POD_A, 80, 1000, TCP_ACK);
}
CHECK_N(verdict, 3) { assert_eq(result->events, 0); }
/* Judged again it is not reported again. */
PKTGEN_N(verdict, 4, from_container, lxc_a)
{
	next_epoch(SUBJECT_B);
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(verdict, 4)
{
	assert_to_pod(lxc_b);
	assert_eq(result->events, 0);
}

/* ---- traces ---- */

#define TRACED(name, n, who, source, sport, destination, dport, flags, want_state, want_point)  \
	PKTGEN_N(name, n, from_container, who)                                          \
	{                                                                               \
		make_tcp(frame, v6, source, destination, sport, dport, flags);          \
	}                                                                               \
	CHECK_N(name, n)                                                                \
	{                                                                               \
		const struct event *e = test_event(0);                                  \
                                                                                        \
		assert_eq(result->events, 1);                                           \
		test_require(e);                                                        \
		assert_eq(e->kind, EVENT_TRACE);                                        \
		assert_eq(e->verdict, VERDICT_ALLOW);                                   \
		assert_eq(e->state, want_state);                                        \
		assert_eq(e->point, want_point);                                        \
		assert_event_ends(e, source, destination);                              \
	}
#define A_TO(name, n, destination, flags, state, point) \
	TRACED(name, n, lxc_a, POD_A, 1000, destination, 80, flags, state, point)

SETUP(trace) { add_cluster(); set_node_flags(NODE_EVENTS | NODE_TRACE); }
A_TO(trace, 1, POD_B, TCP_SYN, FLOW_NEW, TRACE_TO_ENDPOINT)
/* In between there is nothing to tell. */
PKTGEN_N(trace, 2, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, POD_A, 80, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(trace, 2) { assert_eq(result->events, 0); }
PKTGEN_N(trace, 3, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(trace, 3) { assert_eq(result->events, 0); }
A_TO(trace, 4, POD_B, TCP_FIN | TCP_ACK, FLOW_CLOSING, TRACE_TO_ENDPOINT)
TRACED(trace, 5, lxc_b, POD_B, 80, POD_A, 1000, TCP_RST, FLOW_CLOSING, TRACE_TO_ENDPOINT)

SETUP(trace_points) { add_cluster(); set_node_flags(NODE_EVENTS | NODE_TRACE); }
A_TO(trace_points, 1, POD_REMOTE, TCP_SYN, FLOW_NEW, TRACE_TO_OVERLAY)
A_TO(trace_points, 2, WORLD, TCP_SYN, FLOW_NEW, TRACE_TO_NETWORK)
A_TO(trace_points, 3, NODE, TCP_SYN, FLOW_NEW, TRACE_TO_HOST)

/* Not without being asked for. */
SETUP(untraced) { add_cluster(); }
PKTGEN(untraced, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_SYN);
}
CHECK(untraced) { assert_eq(result->events, 0); }

/* ---- counters ---- */

/* From one pod to the other a packet leaves and arrives; elsewhere it does one of them. */
SETUP(counters) { add_cluster(); }
PKTGEN(counters, from_container, lxc_a)
{
	context->repeat = 3;
	make_udp(frame, v6, POD_A, POD_B, 5000, 53);
}
CHECK(counters)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_B, 53);

	assert_to_pod(lxc_b);
	assert_eq(counted(REASON_FORWARDED, DIR_EGRESS), 3);
	assert_eq(counted(REASON_FORWARDED, DIR_INGRESS), 3);
	assert_eq(counted_bytes(REASON_FORWARDED, DIR_EGRESS), 3 * sent->length);
	assert_eq(counted_bytes(REASON_FORWARDED, DIR_INGRESS), 3 * sent->length);
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 3);
	assert_eq(ct->bytes[CT_ORIGINAL], 3 * sent->length);
}
PKTGEN_N(counters, 2, from_container, lxc_a) { make_udp(frame, v6, POD_A, WORLD, 5000, 53); }
CHECK_N(counters, 2)
{
	assert_eq(counted(REASON_FORWARDED, DIR_EGRESS), 1);
	assert_eq(counted(REASON_FORWARDED, DIR_INGRESS), 0);
	assert_eq(counted_bytes(REASON_FORWARDED, DIR_EGRESS), sent->length);
}
PKTGEN_N(counters, 3, to_container, lxc_a) { make_udp(frame, v6, ROUTER, POD_A, 5000, 53); }
CHECK_N(counters, 3)
{
	assert_eq(counted(REASON_FORWARDED, DIR_EGRESS), 0);
	assert_eq(counted(REASON_FORWARDED, DIR_INGRESS), 1);
	assert_eq(counted_bytes(REASON_FORWARDED, DIR_INGRESS), sent->length);
}
