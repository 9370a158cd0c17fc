/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which entry decides: the six levels, denies among them, and prefixes of ports. */
#include "tests/lib/connects.h"

#define ALLOW(...) add_rule(SUBJECT_B, DIR_INGRESS, RULE(__VA_ARGS__))
#define DENY(...) add_rule(SUBJECT_B, DIR_INGRESS, RULE(__VA_ARGS__, .deny = true))

static __always_inline void enforce_b(void)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
}

/* A connects to B, whose ingress is enforced under these rules. */
#define CONNECTS(name, outcome, rules) CONNECTS_AFTER(name, enforce_b(), outcome, rules)

CONNECTS(no_rule, DENIED, )

CONNECTS(allow_identity_port, PASSES, ALLOW(ID_A, IPPROTO_TCP, PORT))
CONNECTS(allow_any_port, PASSES, ALLOW(0, IPPROTO_TCP, PORT))
CONNECTS(allow_identity_protocol, PASSES, ALLOW(ID_A, IPPROTO_TCP))
CONNECTS(allow_any_protocol, PASSES, ALLOW(0, IPPROTO_TCP))
CONNECTS(allow_identity, PASSES, ALLOW(ID_A))
CONNECTS(allow_all, PASSES, ALLOW(0))

CONNECTS(other_identity_port, DENIED, ALLOW(ID_B, IPPROTO_TCP, PORT))
CONNECTS(other_identity_protocol, DENIED, ALLOW(ID_B, IPPROTO_TCP))
CONNECTS(other_identity, DENIED, ALLOW(ID_B))
CONNECTS(other_port, DENIED, ALLOW(ID_A, IPPROTO_TCP, PORT + 1); ALLOW(0, IPPROTO_TCP, PORT - 1))
CONNECTS(source_port, DENIED, ALLOW(ID_A, IPPROTO_TCP, 1000))
CONNECTS(other_protocol, DENIED, ALLOW(ID_A, IPPROTO_UDP, PORT); ALLOW(0, IPPROTO_UDP))
CONNECTS(other_direction, DENIED, add_rule(SUBJECT_B, DIR_EGRESS, RULE(ID_A)))
CONNECTS(other_subject, DENIED, add_rule(SUBJECT_A, DIR_INGRESS, RULE(ID_A)))

/* Of rules that all cover the packet a deny wins, wherever it stands and whatever allows. */
#define ALLOW_ALL_LEVELS                        \
	ALLOW(ID_A, IPPROTO_TCP, PORT);         \
	ALLOW(0, IPPROTO_TCP, PORT);            \
	ALLOW(ID_A, IPPROTO_TCP);               \
	ALLOW(0, IPPROTO_TCP);                  \
	ALLOW(ID_A);                            \
	ALLOW(0)

CONNECTS(deny_identity_port, DENIED_BY_RULE, ALLOW_ALL_LEVELS; DENY(ID_A, IPPROTO_TCP, PORT))
CONNECTS(deny_any_port, DENIED_BY_RULE, ALLOW_ALL_LEVELS; DENY(0, IPPROTO_TCP, PORT))
CONNECTS(deny_identity_protocol, DENIED_BY_RULE, ALLOW_ALL_LEVELS; DENY(ID_A, IPPROTO_TCP))
CONNECTS(deny_any_protocol, DENIED_BY_RULE, ALLOW_ALL_LEVELS; DENY(0, IPPROTO_TCP))
CONNECTS(deny_identity, DENIED_BY_RULE, ALLOW_ALL_LEVELS; DENY(ID_A))
CONNECTS(deny_all, DENIED_BY_RULE, ALLOW_ALL_LEVELS; DENY(0))
CONNECTS(deny_prefix, DENIED_BY_RULE, ALLOW_ALL_LEVELS;
	 DENY(0, IPPROTO_TCP, 0x1f00, .prefix = 8))

/* A deny that does not cover it is no obstacle. */
CONNECTS(deny_others, PASSES, ALLOW(0);
	 DENY(ID_B);
	 DENY(ID_A, IPPROTO_UDP);
	 DENY(0, IPPROTO_TCP, PORT + 1);
	 DENY(ID_A, IPPROTO_TCP, 0x2000, .prefix = 8))

/* Prefixes of 0x1f90: the first bits of the port count, and no others. */
CONNECTS(prefix_15, PASSES, ALLOW(ID_A, IPPROTO_TCP, 0x1f90, .prefix = 15))
CONNECTS(prefix_12, PASSES, ALLOW(0, IPPROTO_TCP, 0x1f90, .prefix = 12))
CONNECTS(prefix_9, PASSES, ALLOW(ID_A, IPPROTO_TCP, 0x1f80, .prefix = 9))
CONNECTS(prefix_8, PASSES, ALLOW(0, IPPROTO_TCP, 0x1f00, .prefix = 8))
CONNECTS(prefix_4, PASSES, ALLOW(ID_A, IPPROTO_TCP, 0x1000, .prefix = 4))
CONNECTS(prefix_3, DENIED, ALLOW(ID_A, IPPROTO_TCP, 0x2000, .prefix = 3))
CONNECTS(prefix_1, DENIED, ALLOW(ID_A, IPPROTO_TCP, 0x8000, .prefix = 1))
CONNECTS(prefix_16, DENIED, ALLOW(ID_A, IPPROTO_TCP, 0x1f91))
CONNECTS(prefix_missed, DENIED, ALLOW(ID_A, IPPROTO_TCP, 0x1fa0, .prefix = 12);
	 ALLOW(0, IPPROTO_TCP, 0x1e00, .prefix = 8);
	 ALLOW(0, IPPROTO_TCP, 0x1f92, .prefix = 15))

/* What is reported is the most specific rule. */
#define DECIDED_BY(number)                                      \
	{                                                       \
		const struct event *event = test_event(0);      \
		PASSES;                                         \
		assert_eq(result->events, 1);                   \
		test_require(event);                            \
		assert_eq(event->kind, EVENT_VERDICT);          \
		assert_eq(event->rule_cookie, number);          \
	}

CONNECTS(first_identity_port, DECIDED_BY(1), ALLOW(ID_A, IPPROTO_TCP, PORT, .cookie = 1);
	 ALLOW(0, IPPROTO_TCP, PORT, .cookie = 2))
CONNECTS(first_longest_prefix, DECIDED_BY(2), ALLOW(ID_A, IPPROTO_TCP, 0x1f00, .prefix = 8, .cookie = 1);
	 ALLOW(ID_A, IPPROTO_TCP, 0x1f90, .prefix = 13, .cookie = 2);
	 ALLOW(ID_A, IPPROTO_TCP, 0x1000, .prefix = 4, .cookie = 3))
CONNECTS(first_prefix_of_identity, DECIDED_BY(1),
	 ALLOW(ID_A, IPPROTO_TCP, 0x1000, .prefix = 4, .cookie = 1);
	 ALLOW(0, IPPROTO_TCP, PORT, .cookie = 2))
CONNECTS(first_any_port, DECIDED_BY(2), ALLOW(0, IPPROTO_TCP, PORT, .cookie = 2);
	 ALLOW(ID_A, IPPROTO_TCP, .cookie = 3))
CONNECTS(first_identity_protocol, DECIDED_BY(3), ALLOW(ID_A, IPPROTO_TCP, .cookie = 3);
	 ALLOW(0, IPPROTO_TCP, .cookie = 4))
CONNECTS(first_any_protocol, DECIDED_BY(4), ALLOW(0, IPPROTO_TCP, .cookie = 4);
	 ALLOW(ID_A, .cookie = 5))
CONNECTS(first_identity, DECIDED_BY(5), ALLOW(ID_A, .cookie = 5); ALLOW(0, .cookie = 6))
CONNECTS(first_all, DECIDED_BY(6), ALLOW(0, .cookie = 6))
