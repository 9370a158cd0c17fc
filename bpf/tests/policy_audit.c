/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Policies in audit mode: they change no verdict, and tell what they would have changed. */
#include "tests/lib/connects.h"
#include "tests/lib/host_firewall.h"

#define REAL(...) add_rule(SUBJECT_B, DIR_INGRESS, RULE(__VA_ARGS__))
#define TRIED(...) add_rule(SUBJECT_B, DIR_INGRESS, RULE(__VA_ARGS__, .space = SPACE_AUDIT))
#define TRIED_ADMIN(...) \
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(__VA_ARGS__, .space = SPACE_AUDIT | TIER_ADMIN))
#define TRIED_BASELINE(...) \
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(__VA_ARGS__, .space = SPACE_AUDIT | TIER_BASELINE))
#define ENFORCE enforce(SUBJECT_B, DIR_INGRESS)
#define TRY_TO_ENFORCE try_to_enforce(SUBJECT_B, DIR_INGRESS)

#define CONNECTS(name, outcome, rules) CONNECTS_AFTER(name, add_cluster(), outcome, rules)

#define SAYS(verdict_, reason_, cookie_)                                                \
	do {                                                                            \
		const struct event *e_ = test_event(0);                                 \
                                                                                        \
		assert_to_pod(lxc_b);                                                   \
		assert_eq(result->events, 1);                                           \
		test_require(e_);                                                       \
		assert_eq(e_->kind, EVENT_VERDICT);                                     \
		assert_eq(e_->verdict, verdict_);                                       \
		assert_eq(e_->reason, reason_);                                         \
		assert_eq(e_->rule_cookie, cookie_);                                    \
		assert_eq(e_->direction, DIR_INGRESS);                                  \
		assert_eq(counted_anyway(DROP_POLICY), 0);                              \
		assert_eq(counted_anyway(DROP_POLICY_DENY), 0);                         \
	} while (0)
#define WOULD_BE_DENIED_BY(cookie) SAYS(VERDICT_AUDIT, DROP_POLICY_DENY, cookie)
#define WOULD_BE_DENIED SAYS(VERDICT_AUDIT, DROP_POLICY, 0)
#define ALLOWED_BY(cookie) SAYS(VERDICT_ALLOW, 0, cookie)
#define SILENT                                                                          \
	do {                                                                            \
		assert_to_pod(lxc_b);                                                   \
		assert_eq(result->events, 0);                                           \
	} while (0)

CONNECTS(deny, WOULD_BE_DENIED_BY(5), TRIED(ID_A, .deny = true, .cookie = 5))
CONNECTS(deny_beside_allow, WOULD_BE_DENIED_BY(5), ENFORCE; REAL(ID_A, .cookie = 1);
	 TRIED(ID_A, .deny = true, .cookie = 5))
CONNECTS(deny_of_others, ALLOWED_BY(1), ENFORCE; REAL(ID_A, .cookie = 1);
	 TRIED(ID_B, .deny = true, .cookie = 5))
CONNECTS(default_deny, WOULD_BE_DENIED, TRY_TO_ENFORCE)
CONNECTS(default_deny_but_for_its_own, SILENT, TRY_TO_ENFORCE; TRIED(ID_A, .cookie = 5))
CONNECTS(default_deny_but_for_others, SILENT, TRY_TO_ENFORCE; REAL(ID_A, .cookie = 1))
CONNECTS(default_deny_of_others, WOULD_BE_DENIED, TRY_TO_ENFORCE; TRIED(ID_B))

CONNECTS(admin_deny, WOULD_BE_DENIED_BY(5), ENFORCE; REAL(ID_A); TRIED_ADMIN(ID_A, .deny = true, .cookie = 5))
CONNECTS(admin_allow_before_default_deny, SILENT, TRY_TO_ENFORCE; TRIED_ADMIN(ID_A))
CONNECTS(baseline_deny, WOULD_BE_DENIED_BY(5), TRIED_BASELINE(ID_A, .deny = true, .cookie = 5))
CONNECTS(baseline_deny_too_late, SILENT, REAL(ID_A); TRIED_BASELINE(ID_A, .deny = true))
/* What a tried policy would leave to one in force, that one denies. */
CONNECTS(admin_pass, WOULD_BE_DENIED_BY(6),
	 add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, .order = 5, .space = TIER_ADMIN));
	 TRIED_ADMIN(ID_A, .pass = true, .order = 4); REAL(ID_A, .deny = true, .cookie = 6))
CONNECTS(admin_pass_too_late, ALLOWED_BY(2),
	 add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, .order = 5, .space = TIER_ADMIN, .cookie = 2));
	 TRIED_ADMIN(ID_A, .pass = true, .order = 6); REAL(ID_A, .deny = true, .cookie = 6))

/* It allows nothing. */
CONNECTS(allow, assert_dropped(DROP_POLICY), ENFORCE; TRIED(ID_A); TRIED_ADMIN(ID_A))
CONNECTS(allow_before_deny, assert_dropped(DROP_POLICY_DENY), REAL(ID_A, .deny = true); TRIED_ADMIN(ID_A))
CONNECTS(denied_anyway, {
	const struct event *e = test_event(0);

	assert_dropped(DROP_POLICY_DENY);
	assert_eq(result->events, 1);
	test_require(e);
	assert_eq(e->kind, EVENT_DROP);
	assert_eq(e->rule_cookie, 1);
}, REAL(ID_A, .deny = true, .cookie = 1); TRIED(ID_A, .deny = true, .cookie = 5))

/* The node's own audit mode is told of before. */
CONNECTS(under_the_nodes_audit, WOULD_BE_DENIED_BY(1), audit(SUBJECT_B, DIR_INGRESS);
	 REAL(ID_A, .deny = true, .cookie = 1); TRIED(ID_A, .deny = true, .cookie = 5))
CONNECTS(beside_the_nodes_audit, WOULD_BE_DENIED_BY(5), audit(SUBJECT_B, DIR_INGRESS);
	 TRIED(ID_A, .deny = true, .cookie = 5))

/* Once a flow, and the entry counts it; that of the rule in force counts the packet as ever. */
SETUP(counted)
{
	add_cluster();
	ENFORCE;
	REAL(ID_A);
	TRIED(ID_A, .deny = true);
}
PKTGEN(counted, from_container, lxc_a) { make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_SYN); }
PKTGEN_N(counted, 2, from_container, lxc_a) { make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_ACK); }
CHECK_N(counted, 2)
{
	const struct policy_value *real = rule_entry(SUBJECT_B, DIR_INGRESS, RULE(ID_A));
	const struct policy_value *tried =
		rule_entry(SUBJECT_B, DIR_INGRESS, RULE(ID_A, .space = SPACE_AUDIT));

	SILENT;
	test_require(real);
	test_require(tried);
	assert_eq(real->packets, 1);
	assert_eq(tried->packets, 1);
}

/* A trace of the flow names the rule in force. */
SETUP(traced)
{
	add_cluster();
	set_node_flags(NODE_EVENTS | NODE_TRACE);
	ENFORCE;
	REAL(ID_A, .cookie = 1);
	TRIED(ID_A, .deny = true, .cookie = 5);
}
PKTGEN(traced, from_container, lxc_a) { make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_SYN); }
CHECK(traced)
{
	const struct event *e = test_event(1);

	assert_eq(result->events, 2);
	test_require(e);
	assert_eq(e->kind, EVENT_TRACE);
	assert_eq(e->rule_cookie, 1);
}

/* ---- the node ---- */

SETUP(node)
{
	add_cluster_with_policy();
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_WORLD, .deny = true, .cookie = 8, .space = SPACE_AUDIT));
}
PKTGEN(node, from_netdev, nic) { make_tcp(frame, v6, WORLD, NODE, 1000, PORT, TCP_SYN); }
CHECK(node)
{
	const struct event *e = test_event(0);

	assert_passed();
	test_require(e);
	assert_eq(e->verdict, VERDICT_AUDIT);
	assert_eq(e->rule_cookie, 8);
	assert_eq(e->endpoint_id, ENDPOINT_HOST);
}
/* Of no flow. */
PKTGEN_N(node, 2, from_netdev, nic) { make_echo_reply(frame, v6, WORLD, NODE, 7); }
CHECK_N(node, 2)
{
	const struct event *e = test_event(0);

	assert_passed();
	test_require(e);
	assert_eq(e->verdict, VERDICT_AUDIT);
	assert_eq(e->rule_cookie, 8);
}
/* What cannot be judged at all is no affair of a policy that is not in force. */
PKTGEN_N(node, 3, from_netdev, nic)
{
	make_tcp(frame, v6, WORLD, NODE, 1000, PORT, TCP_SYN);
	tcp_of(frame)->doff = 4;
}
CHECK_N(node, 3)
{
	assert_eq(result->action, TC_ACT_OK);
	assert_eq(result->events, 0);
}
