/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows that were admitted, when policy, identities or endpoints change beneath them. */
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
#define ALLOWED RULE(ID_A, IPPROTO_TCP, 80, .cookie = 3)

static __always_inline void allow_a_to_b(void)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
	add_rule(SUBJECT_B, DIR_INGRESS, ALLOWED);
}

/* B's policy turns into one with no rule at all. */
static __always_inline void forbid_everything_to_b(void)
{
	struct subject *row = subject_of(SUBJECT_B);

	if (row)
		row->instance++;
	enforce(SUBJECT_B, DIR_EGRESS);
	next_epoch(SUBJECT_B);
}

/* The verdict of an established flow is remembered: the rule counts its first packet. */
SETUP(verdict_is_kept) { allow_a_to_b(); }
A_SENDS(verdict_is_kept, 1, TCP_SYN)
B_SENDS(verdict_is_kept, 2, TCP_SYN | TCP_ACK)
A_SENDS(verdict_is_kept, 3, TCP_ACK)
CHECK_N(verdict_is_kept, 3)
{
	const struct policy_value *entry = rule_entry(SUBJECT_B, DIR_INGRESS, ALLOWED);

	assert_to_pod(lxc_b);
	test_require(entry);
	assert_eq(entry->packets, 1);
	assert_eq(entry->bytes, sent->length);
}

/* Taken back, it stops the flow in the middle, whoever sends next. */
SETUP(withdrawn) { allow_a_to_b(); }
A_SENDS(withdrawn, 1, TCP_SYN)
CHECK(withdrawn) { assert_to_pod(lxc_b); }
PKTGEN_N(withdrawn, 2, from_container, lxc_a)
{
	forbid_everything_to_b();
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(withdrawn, 2) { assert_dropped(DROP_POLICY); }

SETUP(withdrawn_reply) { allow_a_to_b(); }
A_SENDS(withdrawn_reply, 1, TCP_SYN)
CHECK(withdrawn_reply) { assert_to_pod(lxc_b); }
PKTGEN_N(withdrawn_reply, 2, from_container, lxc_b)
{
	forbid_everything_to_b();
	make_tcp(frame, v6, POD_B, POD_A, 80, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(withdrawn_reply, 2) { assert_dropped(DROP_POLICY); }

SETUP(withdrawn_in_stack) { allow_a_to_b(); }
PKTGEN(withdrawn_in_stack, to_container, lxc_b)
{
	context->ingress_ifindex = CONFIG(lxc_a_ifindex);
	context->mark = mark_of_identity(ID_A);
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_SYN);
}
CHECK(withdrawn_in_stack) { assert_eq(result->action, TC_ACT_OK); }
PKTGEN_N(withdrawn_in_stack, 2, to_container, lxc_b)
{
	forbid_everything_to_b();
	context->ingress_ifindex = CONFIG(lxc_a_ifindex);
	context->mark = mark_of_identity(ID_A);
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(withdrawn_in_stack, 2) { assert_dropped(DROP_POLICY); }

/* Allowed again, the same flow goes on. */
SETUP(allowed_again) { allow_a_to_b(); }
A_SENDS(allowed_again, 1, TCP_SYN)
B_SENDS(allowed_again, 2, TCP_SYN | TCP_ACK)
PKTGEN_N(allowed_again, 3, from_container, lxc_a)
{
	forbid_everything_to_b();
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(allowed_again, 3) { assert_dropped(DROP_POLICY); }
PKTGEN_N(allowed_again, 4, from_container, lxc_a)
{
	add_rule(SUBJECT_B, DIR_INGRESS, ALLOWED);
	next_epoch(SUBJECT_B);
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(allowed_again, 4)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_B, 80);

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 2);
	assert_eq(ct->packets[CT_REPLY], 1);
}

/* A new generation alone changes no verdict and asks no rule. */
SETUP(generation_alone) { allow_a_to_b(); }
A_SENDS(generation_alone, 1, TCP_SYN)
PKTGEN_N(generation_alone, 2, from_container, lxc_a)
{
	next_generation();
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(generation_alone, 2)
{
	const struct policy_value *entry = rule_entry(SUBJECT_B, DIR_INGRESS, ALLOWED);

	assert_to_pod(lxc_b);
	test_require(entry);
	assert_eq(entry->packets, 1);
}

/* The sender becomes somebody else: the rule that let it in is none for the new one. */
SETUP(identity_changes) { allow_a_to_b(); }
A_SENDS(identity_changes, 1, TCP_SYN)
CHECK(identity_changes) { assert_to_pod(lxc_b); }
PKTGEN_N(identity_changes, 2, from_container, lxc_a)
{
	struct endpoint *row = endpoint_row(SLOT_A);

	if (row)
		row->identity = ID_A + 100;
	next_generation();
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(identity_changes, 2) { assert_dropped(DROP_POLICY); }

/* Even when nobody has said that anything changed. */
SETUP(identity_changes_unsaid) { allow_a_to_b(); }
A_SENDS(identity_changes_unsaid, 1, TCP_SYN)
A_SENDS(identity_changes_unsaid, 2, TCP_ACK)
CHECK_N(identity_changes_unsaid, 2) { assert_to_pod(lxc_b); }
PKTGEN_N(identity_changes_unsaid, 3, from_container, lxc_a)
{
	struct endpoint *row = endpoint_row(SLOT_A);

	if (row)
		row->identity = ID_A + 100;
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(identity_changes_unsaid, 3) { assert_dropped(DROP_POLICY); }

/* So does the destination. */
SETUP(peer_identity_changes)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_EGRESS);
	add_rule(SUBJECT_A, DIR_EGRESS, RULE(ID_POD_REMOTE));
}
PKTGEN(peer_identity_changes, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_REMOTE, 1000, 80, TCP_SYN);
}
CHECK(peer_identity_changes) { assert_to_tunnel(NODE_OTHER, ID_A); }
PKTGEN_N(peer_identity_changes, 2, from_container, lxc_a)
{
	add_address(POD_REMOTE, ID_POD_REMOTE + 100, NODE_OTHER);
	next_generation();
	make_tcp(frame, v6, POD_A, POD_REMOTE, 1000, 80, TCP_ACK);
}
CHECK_N(peer_identity_changes, 2) { assert_dropped(DROP_POLICY); }

/* The pod moves to another node: the flow follows. */
SETUP(peer_moves) { add_cluster(); }
PKTGEN(peer_moves, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_REMOTE, 1000, 80, TCP_SYN);
}
CHECK(peer_moves) { assert_to_tunnel(NODE_OTHER, ID_A); }
PKTGEN_N(peer_moves, 2, from_container, lxc_a)
{
	add_address(POD_REMOTE, ID_POD_REMOTE, WORLD);
	next_generation();
	make_tcp(frame, v6, POD_A, POD_REMOTE, 1000, 80, TCP_ACK);
}
CHECK_N(peer_moves, 2) { assert_to_tunnel(WORLD, ID_A); }

/* B's address goes to a new endpoint in another slot: a flow of the old one is none of the new one's. */
SETUP(address_changes_hands) { allow_a_to_b(); }
A_SENDS(address_changes_hands, 1, TCP_SYN)
B_SENDS(address_changes_hands, 2, TCP_SYN | TCP_ACK)
PKTGEN_N(address_changes_hands, 3, from_container, lxc_a)
{
	const struct endpoint *old = endpoint_row(SLOT_B);
	struct endpoint row;

	if (old) {
		row = *old;
		row.endpoint_id = ENDPOINT_B + 50;
		put_slot(SLOT_B + 10, &row);
		next_generation();
	}
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(address_changes_hands, 3)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_B, 80);

	assert_to_pod(lxc_b);
	test_require(ct);
	assert_eq(ct->seen[CT_REPLY], 0);
	assert_eq(ct->packets[CT_ORIGINAL], 1);
	assert_eq(ct->side[DIR_INGRESS].owner, ENDPOINT_B + 50);
}

/* The same where the stack hands over, before the generation tells of it. */
SETUP(device_changes_hands) { allow_a_to_b(); }
PKTGEN(device_changes_hands, to_container, lxc_b)
{
	context->ingress_ifindex = CONFIG(lxc_a_ifindex);
	context->mark = mark_of_identity(ID_A);
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_SYN);
}
CHECK(device_changes_hands) { assert_eq(result->action, TC_ACT_OK); }
PKTGEN_N(device_changes_hands, 2, to_container, lxc_b)
{
	const struct endpoint *old = endpoint_row(SLOT_B);
	struct endpoint row;

	if (old) {
		row = *old;
		row.endpoint_id = ENDPOINT_B + 50;
		row.subject = SUBJECT_B + 50;
		put_slot(SLOT_B + 10, &row);
	}
	context->ingress_ifindex = CONFIG(lxc_a_ifindex);
	context->mark = mark_of_identity(ID_A);
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(device_changes_hands, 2) { assert_dropped(DROP_POLICY_NOT_READY); }

/* An answer under a policy that forbids all egress passes; the flow was the other's idea. */
SETUP(answers_are_free) { allow_a_to_b(); }
A_SENDS(answers_are_free, 1, TCP_SYN)
PKTGEN_N(answers_are_free, 2, from_container, lxc_b)
{
	enforce(SUBJECT_B, DIR_EGRESS);
	enforce(SUBJECT_A, DIR_INGRESS);
	next_epoch(SUBJECT_A);
	next_epoch(SUBJECT_B);
	make_tcp(frame, v6, POD_B, POD_A, 80, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(answers_are_free, 2) { assert_to_pod(lxc_a); }
