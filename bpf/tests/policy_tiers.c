/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Tiers: who is asked first, which entry of a tier decides, and what is left to the next. */
#include "tests/lib/connects.h"

#define ALLOW(...) add_rule(SUBJECT_B, DIR_INGRESS, RULE(__VA_ARGS__))
#define ADMIN(...) add_rule(SUBJECT_B, DIR_INGRESS, RULE(__VA_ARGS__, .space = TIER_ADMIN))
#define BASELINE(...) add_rule(SUBJECT_B, DIR_INGRESS, RULE(__VA_ARGS__, .space = TIER_BASELINE))
#define ENFORCE enforce(SUBJECT_B, DIR_INGRESS)

/* A connects to B, whose ingress is under these rules. */
#define CONNECTS(name, outcome, rules) CONNECTS_AFTER(name, add_cluster(), outcome, rules)

/* ---- between tiers ---- */

CONNECTS(admin_allows, PASSES, ENFORCE; ADMIN(ID_A); ALLOW(ID_A, .deny = true))
CONNECTS(admin_denies, DENIED_BY_RULE, ADMIN(ID_A, .deny = true); ALLOW(ID_A))
CONNECTS(admin_passes_to_allow, PASSES, ENFORCE; ADMIN(ID_A, .pass = true); ALLOW(ID_A))
CONNECTS(admin_passes_to_deny, DENIED_BY_RULE, ADMIN(ID_A, .pass = true); ALLOW(ID_A, .deny = true))
CONNECTS(admin_passes_to_default, DENIED, ENFORCE; ADMIN(ID_A, .pass = true))
CONNECTS(admin_passes_to_nothing, PASSES, ADMIN(ID_A, .pass = true))
CONNECTS(admin_passes_to_baseline, DENIED_BY_RULE, ADMIN(ID_A, .pass = true); BASELINE(ID_A, .deny = true))
CONNECTS(admin_of_others, DENIED, ENFORCE; ADMIN(ID_B); ADMIN(0, IPPROTO_UDP); ADMIN(0, IPPROTO_TCP, 80))
CONNECTS(admin_of_other_direction, PASSES, add_rule(SUBJECT_B, DIR_EGRESS,
						    RULE(ID_A, .deny = true, .space = TIER_ADMIN)))
CONNECTS(admin_does_not_enforce, PASSES, ADMIN(ID_B))

CONNECTS(baseline_denies, DENIED_BY_RULE, BASELINE(ID_A, .deny = true))
CONNECTS(baseline_allows, PASSES, BASELINE(ID_A))
CONNECTS(baseline_passes, PASSES, BASELINE(ID_A, .pass = true))
CONNECTS(baseline_after_default, DENIED, ENFORCE; BASELINE(ID_A))
CONNECTS(baseline_after_allow, PASSES, ALLOW(ID_A); BASELINE(ID_A, .deny = true))
CONNECTS(baseline_after_deny, DENIED_BY_RULE, ALLOW(ID_A, .deny = true); BASELINE(ID_A))
CONNECTS(baseline_after_allow_of_others, DENIED_BY_RULE, ALLOW(ID_B); BASELINE(ID_A, .deny = true))

/* One key in three tiers is three entries. */
CONNECTS(one_key_in_all, PASSES, ENFORCE; ADMIN(ID_A, IPPROTO_TCP, PORT, .pass = true);
	 ALLOW(ID_A, IPPROTO_TCP, PORT);
	 BASELINE(ID_A, IPPROTO_TCP, PORT, .deny = true))
/* In the normal tier a deny wins still, whatever is in the others. */
CONNECTS(deny_over_allow, DENIED_BY_RULE, ENFORCE; ADMIN(ID_B); ALLOW(ID_A, IPPROTO_TCP, PORT);
	 ALLOW(0, .deny = true))

/* ---- within a tier ---- */

CONNECTS(order_over_specific, DENIED_BY_RULE, ADMIN(ID_A, IPPROTO_TCP, PORT, .order = 2);
	 ADMIN(0, .deny = true, .order = 1))
CONNECTS(order_over_deny, PASSES, ADMIN(0, .order = 1);
	 ADMIN(ID_A, IPPROTO_TCP, PORT, .deny = true, .order = 2))
CONNECTS(order_of_pass, PASSES, ADMIN(0, IPPROTO_TCP, .pass = true, .order = 1);
	 ADMIN(ID_A, .deny = true, .order = 2))
CONNECTS(order_of_baseline, DENIED_BY_RULE, BASELINE(ID_A, .order = 70000);
	 BASELINE(0, IPPROTO_TCP, .deny = true, .order = 69999))
/* All 32 bits of it. */
CONNECTS(order_is_large, PASSES, ADMIN(ID_A, .order = 0x3fffffff);
	 ADMIN(0, .deny = true, .order = 0x40000000))
CONNECTS(order_is_largest, DENIED_BY_RULE, ADMIN(ID_A, .deny = true, .order = 0xffffffff))
CONNECTS(equal_deny_over_pass, DENIED_BY_RULE, ADMIN(ID_A, .pass = true, .order = 3);
	 ADMIN(0, .deny = true, .order = 3))
CONNECTS(equal_deny_over_allow, DENIED_BY_RULE, ADMIN(ID_A, .order = 3); ADMIN(0, .deny = true, .order = 3))
CONNECTS(equal_pass_over_allow, DENIED, ENFORCE; ADMIN(ID_A, .order = 3);
	 ADMIN(0, .pass = true, .order = 3))
CONNECTS(not_covering_is_no_order, PASSES, ADMIN(ID_A, .order = 9); ADMIN(ID_B, .deny = true);
	 ADMIN(0, IPPROTO_UDP, .deny = true); ADMIN(0, IPPROTO_TCP, PORT + 1, .deny = true))

/* Every kind of entry is found there. */
CONNECTS(level_identity_port, DENIED_BY_RULE, ADMIN(ID_A, IPPROTO_TCP, PORT, .deny = true))
CONNECTS(level_any_port, DENIED_BY_RULE, ADMIN(0, IPPROTO_TCP, PORT, .deny = true))
CONNECTS(level_identity_protocol, DENIED_BY_RULE, ADMIN(ID_A, IPPROTO_TCP, .deny = true))
CONNECTS(level_any_protocol, DENIED_BY_RULE, ADMIN(0, IPPROTO_TCP, .deny = true))
CONNECTS(level_identity, DENIED_BY_RULE, ADMIN(ID_A, .deny = true))
CONNECTS(level_all, DENIED_BY_RULE, ADMIN(0, .deny = true))
CONNECTS(prefix_15, DENIED_BY_RULE, ADMIN(ID_A, IPPROTO_TCP, 0x1f90, .prefix = 15, .deny = true))
CONNECTS(prefix_9, DENIED_BY_RULE, ADMIN(0, IPPROTO_TCP, 0x1f80, .prefix = 9, .deny = true))
CONNECTS(prefix_1, PASSES, ADMIN(ID_A, IPPROTO_TCP, 0x8000, .prefix = 1, .deny = true))
CONNECTS(prefix_order, PASSES, ADMIN(ID_A, IPPROTO_TCP, 0x1f00, .prefix = 8, .order = 1);
	 ADMIN(ID_A, IPPROTO_TCP, 0x1f90, .prefix = 13, .deny = true, .order = 2))

/* ---- reports ---- */

#define DECIDED_BY(number)                                      \
	{                                                       \
		const struct event *event = test_event(0);      \
		PASSES;                                         \
		assert_eq(result->events, 1);                   \
		test_require(event);                            \
		assert_eq(event->kind, EVENT_VERDICT);          \
		assert_eq(event->verdict, VERDICT_ALLOW);       \
		assert_eq(event->rule_cookie, number);          \
		assert_eq(event->policy_revision, 7);           \
	}
#define SILENT                                                  \
	{                                                       \
		PASSES;                                         \
		assert_eq(result->events, 0);                   \
	}

CONNECTS(told_of_admin, DECIDED_BY(1), ADMIN(ID_A, .cookie = 1); ALLOW(ID_A, .cookie = 2))
CONNECTS(told_of_baseline, DECIDED_BY(3), BASELINE(ID_A, .cookie = 3))
CONNECTS(told_of_normal, DECIDED_BY(2), ENFORCE; ADMIN(ID_A, .pass = true, .cookie = 1);
	 ALLOW(ID_A, .cookie = 2))
CONNECTS(told_of_the_first, DECIDED_BY(2), ADMIN(ID_A, IPPROTO_TCP, PORT, .cookie = 1, .order = 5);
	 ADMIN(0, .cookie = 2, .order = 4))
CONNECTS(told_of_the_most_specific, DECIDED_BY(1), ADMIN(ID_A, IPPROTO_TCP, PORT, .cookie = 1);
	 ADMIN(0, IPPROTO_TCP, PORT, .cookie = 2); ADMIN(ID_A, .cookie = 3))
/* What no policy says anything about is nothing to tell. */
CONNECTS(silent_of_others, SILENT, ADMIN(ID_B, .deny = true))
CONNECTS(silent_of_pass, SILENT, ADMIN(ID_A, .pass = true))

CONNECTS(told_of_denial, {
	const struct event *event = test_event(0);

	DENIED_BY_RULE;
	test_require(event);
	assert_eq(event->kind, EVENT_DROP);
	assert_eq(event->rule_cookie, 6);
}, ADMIN(ID_A, .deny = true, .cookie = 6); ALLOW(ID_A, .cookie = 2))

/* Only the entry that decides counts, and once a flow. */
SETUP(counted)
{
	add_cluster();
	ADMIN(ID_A, .pass = true);
	ALLOW(ID_A, IPPROTO_TCP);
	BASELINE(ID_A);
}
PKTGEN(counted, from_container, lxc_a) { make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_SYN); }
PKTGEN_N(counted, 2, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, POD_A, PORT, 1000, TCP_SYN | TCP_ACK);
}
PKTGEN_N(counted, 3, from_container, lxc_a) { make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_ACK); }
CHECK_N(counted, 3)
{
	const struct policy_value *admin, *normal, *baseline;

	admin = rule_entry(SUBJECT_B, DIR_INGRESS, RULE(ID_A, .space = TIER_ADMIN));
	normal = rule_entry(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_TCP));
	baseline = rule_entry(SUBJECT_B, DIR_INGRESS, RULE(ID_A, .space = TIER_BASELINE));
	PASSES;
	test_require(admin);
	test_require(normal);
	test_require(baseline);
	assert_eq(admin->packets, 0);
	assert_eq(normal->packets, 1);
	assert_eq(normal->bytes, sent->length);
	assert_eq(baseline->packets, 0);
}

/* ---- what stands above every tier ---- */

SETUP(host_reaches_its_pods)
{
	add_cluster();
	ADMIN(0, .deny = true);
	BASELINE(0, .deny = true);
}
PKTGEN(host_reaches_its_pods, to_container, lxc_b)
{
	make_tcp(frame, v6, ROUTER, POD_B, 1000, PORT, TCP_SYN);
}
CHECK(host_reaches_its_pods) { assert_eq(result->action, TC_ACT_OK); }

/* B answers, though it may begin nothing. */
SETUP(answers)
{
	add_cluster();
	add_rule(SUBJECT_B, DIR_EGRESS, RULE(0, .deny = true, .space = TIER_ADMIN));
}
PKTGEN(answers, from_container, lxc_a) { make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_SYN); }
PKTGEN_N(answers, 2, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, POD_A, PORT, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(answers, 2) { assert_to_pod(lxc_a); }
PKTGEN_N(answers, 3, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, POD_A, 1001, PORT, TCP_SYN);
}
CHECK_N(answers, 3) { DENIED_BY_RULE; }

/* A change of the policy reaches flows that are under way, by whatever tier. */
SETUP(changed)
{
	add_cluster();
	ADMIN(ID_A);
}
PKTGEN(changed, from_container, lxc_a) { make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_SYN); }
PKTGEN_N(changed, 2, from_container, lxc_a)
{
	ADMIN(ID_A, .deny = true);
	next_epoch(SUBJECT_B);
	make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_ACK);
}
CHECK_N(changed, 2) { DENIED_BY_RULE; }

/* ---- ICMP ---- */

#define ICMP_OF(v6) (v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)

#define PINGS(name, outcome, rules)                                                     \
	SETUP(name)                                                                     \
	{                                                                               \
		add_cluster();                                                          \
		rules;                                                                  \
	}                                                                               \
	PKTGEN(name, from_container, lxc_a) { make_echo(frame, v6, POD_A, POD_B, 7); }  \
	CHECK(name) { outcome; }

PINGS(ping_type, DENIED_BY_RULE, ADMIN(ID_A, ICMP_OF(v6), v6 ? TYPE6_ECHO : TYPE4_ECHO, .deny = true))
PINGS(ping_all_types, DENIED_BY_RULE, ADMIN(ID_A, ICMP_OF(v6), .deny = true))
PINGS(ping_type_of_reply, PASSES,
      ADMIN(ID_A, ICMP_OF(v6), v6 ? TYPE6_ECHO_REPLY : TYPE4_ECHO_REPLY, .prefix = 16, .deny = true))
PINGS(ping_of_other_family, PASSES, ADMIN(ID_A, ICMP_OF(!v6), .deny = true))

/* The reply is of the ping's flow, whatever is said of its own type. */
SETUP(pong)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_INGRESS);
	enforce(SUBJECT_B, DIR_EGRESS);
	ADMIN(ID_A, ICMP_OF(v6), v6 ? TYPE6_ECHO : TYPE4_ECHO);
	add_rule(SUBJECT_A, DIR_INGRESS,
		 RULE(ID_B, ICMP_OF(v6), v6 ? TYPE6_ECHO_REPLY : TYPE4_ECHO_REPLY, .prefix = 16,
		      .deny = true, .space = TIER_ADMIN));
}
PKTGEN(pong, from_container, lxc_a) { make_echo(frame, v6, POD_A, POD_B, 7); }
CHECK(pong) { assert_to_pod(lxc_b); }
PKTGEN_N(pong, 2, from_container, lxc_b) { make_echo_reply(frame, v6, POD_B, POD_A, 7); }
CHECK_N(pong, 2) { assert_to_pod(lxc_a); }
