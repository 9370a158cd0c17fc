/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* When policy is asked at all, by which end, and what follows from a change. */
#include "tests/lib/scenario.h"

#define A_CONNECTS(name)                                                        \
	PKTGEN(name, from_container, lxc_a)                                     \
	{                                                                       \
		make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_SYN);           \
	}

/* ---- enforcement ---- */

SETUP(unenforced) { add_cluster(); }
A_CONNECTS(unenforced)
CHECK(unenforced)
{
	assert_to_pod(lxc_b);
	assert_eq(result->events, 0);
}

SETUP(unenforced_deny)
{
	add_cluster();
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, .deny = true, .cookie = 9));
}
A_CONNECTS(unenforced_deny)
CHECK(unenforced_deny) { assert_dropped(DROP_POLICY_DENY); }

SETUP(unenforced_other_deny)
{
	add_cluster();
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_TCP, 81, .deny = true));
}
A_CONNECTS(unenforced_other_deny)
CHECK(unenforced_other_deny) { assert_to_pod(lxc_b); }

SETUP(enforced_other_way)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_EGRESS);
	enforce(SUBJECT_A, DIR_INGRESS);
}
A_CONNECTS(enforced_other_way)
CHECK(enforced_other_way) { assert_to_pod(lxc_b); }

/* ---- both ends judge ---- */

SETUP(egress_denied)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_EGRESS);
	add_rule(SUBJECT_A, DIR_EGRESS, RULE(ID_B, IPPROTO_TCP, 81));
}
A_CONNECTS(egress_denied)
CHECK(egress_denied)
{
	assert_dropped(DROP_POLICY);
	assert_eq(counted(DROP_POLICY, DIR_EGRESS), 1);
	test_assert(!flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_B, 80));
}

SETUP(ingress_denied)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_EGRESS);
	add_rule(SUBJECT_A, DIR_EGRESS, RULE(ID_B, IPPROTO_TCP, 80));
	enforce(SUBJECT_B, DIR_INGRESS);
}
A_CONNECTS(ingress_denied)
CHECK(ingress_denied)
{
	assert_dropped(DROP_POLICY);
	assert_eq(counted(DROP_POLICY, DIR_INGRESS), 1);
	test_assert(!flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_B, 80));
}

SETUP(both_allow)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_EGRESS);
	enforce(SUBJECT_A, DIR_INGRESS);
	enforce(SUBJECT_B, DIR_EGRESS);
	enforce(SUBJECT_B, DIR_INGRESS);
	add_rule(SUBJECT_A, DIR_EGRESS, RULE(ID_B, IPPROTO_TCP, 80));
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_TCP, 80));
}
A_CONNECTS(both_allow)
CHECK(both_allow) { assert_to_pod(lxc_b); }
/* The answer needs no rule of its own. */
PKTGEN_N(both_allow, 2, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, POD_A, 80, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(both_allow, 2) { assert_to_pod(lxc_a); }
/* A connection the other way does. */
PKTGEN_N(both_allow, 3, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, POD_A, 1000, 80, TCP_SYN);
}
CHECK_N(both_allow, 3) { assert_dropped(DROP_POLICY); }

/* ---- egress to what is no pod of this node ---- */

#define A_MAY_SEND_TO(name, destination, who, check)                               \
	SETUP(name)                                                                 \
	{                                                                           \
		add_cluster();                                                      \
		add_prefix(WORLD_CIDR, 24, 48, ID_CIDR, HOST_NONE);                 \
		enforce(SUBJECT_A, DIR_EGRESS);                                     \
		add_rule(SUBJECT_A, DIR_EGRESS, RULE(who, IPPROTO_TCP, 80));        \
	}                                                                           \
	PKTGEN(name, from_container, lxc_a)                                         \
	{                                                                           \
		make_tcp(frame, v6, POD_A, destination, 1000, 80, TCP_SYN);         \
	}                                                                           \
	CHECK(name)                                                                 \
	{                                                                           \
		check;                                                              \
	}                                                                           \
	PKTGEN_N(name, 2, from_container, lxc_a)                                    \
	{                                                                           \
		make_tcp(frame, v6, POD_A, destination, 1000, 81, TCP_SYN);         \
	}                                                                           \
	CHECK_N(name, 2)                                                            \
	{                                                                           \
		assert_dropped(DROP_POLICY);                                        \
	}

A_MAY_SEND_TO(egress_remote_pod, POD_REMOTE, ID_POD_REMOTE, assert_to_tunnel(NODE_OTHER, ID_A))
A_MAY_SEND_TO(egress_world, WORLD, ID_WORLD, assert_to_network())
A_MAY_SEND_TO(egress_cidr, WORLD_CIDR, ID_CIDR, assert_to_network())
A_MAY_SEND_TO(egress_host, NODE, ID_HOST, assert_to_stack(ID_A))
A_MAY_SEND_TO(egress_router, ROUTER, ID_HOST, assert_to_stack(ID_A))
A_MAY_SEND_TO(egress_remote_node, NODE_OTHER, ID_REMOTE_NODE, assert_to_network())

/* ---- a policy that is not there yet ---- */

SETUP(not_ready)
{
	add_cluster();
	remove_subject(SUBJECT_B);
}
A_CONNECTS(not_ready)
CHECK(not_ready)
{
	assert_dropped(DROP_POLICY_NOT_READY);
	assert_eq(counted(DROP_POLICY_NOT_READY, DIR_INGRESS), 1);
}
PKTGEN_N(not_ready, 2, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, WORLD, 1000, 80, TCP_SYN);
}
CHECK_N(not_ready, 2) { assert_dropped(DROP_POLICY_NOT_READY); }
/* But it passes to the host, which may have to help it get there, and from it. */
PKTGEN_N(not_ready, 3, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, NODE, 1000, 80, TCP_SYN);
}
CHECK_N(not_ready, 3) { assert_to_stack(ID_B); }
PKTGEN_N(not_ready, 4, to_container, lxc_b)
{
	make_tcp(frame, v6, ROUTER, POD_B, 1000, 80, TCP_SYN);
}
CHECK_N(not_ready, 4) { assert_eq(result->action, TC_ACT_OK); }

/* A row that is in the hash alone is as good, and so is the array's second version. */
SETUP(rows_elsewhere)
{
	struct subject row = { .instance = 1, .epoch = 1, .shape[DIR_INGRESS].enforced = 1 };
	struct subject_versions versions = { .current = 2, .version[1] = row };
	__u32 number = SUBJECT_B;

	add_cluster();
	remove_subject(SUBJECT_B);
	bpf_map_update_elem(&subject, &number, &row, BPF_ANY);
	number = SUBJECT_A;
	bpf_map_update_elem(&subject_array, &number, &versions, BPF_ANY);
}
A_CONNECTS(rows_elsewhere)
CHECK(rows_elsewhere) { assert_dropped(DROP_POLICY); }
PKTGEN_N(rows_elsewhere, 2, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, POD_A, 1000, 80, TCP_SYN);
}
CHECK_N(rows_elsewhere, 2) { assert_dropped(DROP_POLICY); }

/* ---- audit ---- */

SETUP(audited)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
	audit(SUBJECT_B, DIR_INGRESS);
}
A_CONNECTS(audited)
CHECK(audited)
{
	const struct event *event = test_event(0);

	assert_to_pod(lxc_b);
	assert_eq(result->events, 1);
	test_require(event);
	assert_eq(event->kind, EVENT_VERDICT);
	assert_eq(event->verdict, VERDICT_AUDIT);
	assert_eq(event->reason, DROP_POLICY);
	assert_eq(event->direction, DIR_INGRESS);
	assert_eq(counted_anyway(DROP_POLICY), 0);
}
/* Once a flow is enough. */
PKTGEN_N(audited, 2, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(audited, 2)
{
	assert_to_pod(lxc_b);
	assert_eq(result->events, 0);
}

SETUP(audited_deny)
{
	add_cluster();
	audit(SUBJECT_B, DIR_INGRESS);
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, .deny = true, .cookie = 5));
}
A_CONNECTS(audited_deny)
CHECK(audited_deny)
{
	const struct event *event = test_event(0);

	assert_to_pod(lxc_b);
	test_require(event);
	assert_eq(event->verdict, VERDICT_AUDIT);
	assert_eq(event->reason, DROP_POLICY_DENY);
	assert_eq(event->rule_cookie, 5);
}

SETUP(audited_other_direction)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
	audit(SUBJECT_B, DIR_EGRESS);
	audit(SUBJECT_A, DIR_INGRESS);
}
A_CONNECTS(audited_other_direction)
CHECK(audited_other_direction) { assert_dropped(DROP_POLICY); }

/* Audit is of policy alone. */
SETUP(audited_forgery)
{
	add_cluster();
	audit(SUBJECT_A, DIR_EGRESS);
}
PKTGEN(audited_forgery, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_B, WORLD, 1000, 80, TCP_SYN);
}
CHECK(audited_forgery) { assert_dropped(DROP_INVALID_SIP); }

/* ---- protocols ---- */

#define B_ADMITS(name, protocol, port, packet, outcome)                            \
	SETUP(name)                                                                 \
	{                                                                           \
		add_cluster();                                                      \
		enforce(SUBJECT_B, DIR_INGRESS);                                    \
		add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, protocol, port));       \
	}                                                                           \
	PKTGEN(name, from_container, lxc_a)                                         \
	{                                                                           \
		packet;                                                             \
	}                                                                           \
	CHECK(name)                                                                 \
	{                                                                           \
		outcome;                                                            \
	}

B_ADMITS(udp_port, IPPROTO_UDP, 53, make_udp(frame, v6, POD_A, POD_B, 1000, 53),
	 assert_to_pod(lxc_b))
B_ADMITS(udp_other_port, IPPROTO_UDP, 53, make_udp(frame, v6, POD_A, POD_B, 1000, 54),
	 assert_dropped(DROP_POLICY))
B_ADMITS(udp_tcp_rule, IPPROTO_TCP, 53, make_udp(frame, v6, POD_A, POD_B, 1000, 53),
	 assert_dropped(DROP_POLICY))
B_ADMITS(sctp_port, IPPROTO_SCTP, 9, make_sctp(frame, v6, POD_A, POD_B, 1000, 9, 1),
	 assert_to_pod(lxc_b))
B_ADMITS(sctp_other_port, IPPROTO_SCTP, 9, make_sctp(frame, v6, POD_A, POD_B, 1000, 10, 1),
	 assert_dropped(DROP_POLICY))
/* Of echo the port is the request's type. */
B_ADMITS(echo_type, v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP, v6 ? TYPE6_ECHO : TYPE4_ECHO,
	 make_echo(frame, v6, POD_A, POD_B, 77), assert_to_pod(lxc_b))
B_ADMITS(echo_reply_type, v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP, v6 ? TYPE6_ECHO_REPLY : 1,
	 make_echo(frame, v6, POD_A, POD_B, 77), assert_dropped(DROP_POLICY))
B_ADMITS(echo_all_icmp, v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP, 0,
	 make_echo(frame, v6, POD_A, POD_B, 77), assert_to_pod(lxc_b))
/* ICMP of the other family is another protocol. */
B_ADMITS(echo_other_family, v6 ? IPPROTO_ICMP : IPPROTO_ICMPV6, 0,
	 make_echo(frame, v6, POD_A, POD_B, 77), assert_dropped(DROP_POLICY))
