/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Entries by address: of which end of a flow, whoever has the address, and by the longest prefix. */
#include "lib/nat_map.h"
#include "tests/lib/connects.h"
#include "tests/lib/host_firewall.h"

/* Numbers of prefixes. */
#define WIDE 0xff0001
#define NARROW 0xff0002

#define B_TAKES(...) add_rule(SUBJECT_B, DIR_INGRESS, RULE(__VA_ARGS__, .space = SPACE_BY_ADDRESS))
#define A_MAY_REACH(...) add_rule(SUBJECT_A, DIR_EGRESS, RULE(__VA_ARGS__, .space = SPACE_BY_ADDRESS))

static __always_inline void guard_b(void)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
}

static __always_inline void guard_a(void)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_EGRESS);
}

/* ---- whose address ---- */

#define A_CONNECTS(name, outcome, rules) CONNECTS_AFTER(name, guard_b(), outcome, rules)

A_CONNECTS(a_pod, PASSES, add_block(POD_A, 32, 128, WIDE); B_TAKES(WIDE))
A_CONNECTS(a_pods_network, PASSES, add_block(POD_A, 8, 16, WIDE); B_TAKES(WIDE))
A_CONNECTS(everybody, PASSES, add_block(HOST_NONE, 0, 0, 9); B_TAKES(9))
A_CONNECTS(somebody_else, DENIED, add_block(WORLD, 32, 128, WIDE); B_TAKES(WIDE))
A_CONNECTS(the_subject_itself, DENIED, add_block(POD_B, 32, 128, WIDE); B_TAKES(WIDE))
A_CONNECTS(no_entry, DENIED, add_block(POD_A, 32, 128, WIDE); B_TAKES(NARROW))
A_CONNECTS(no_prefix, DENIED, B_TAKES(WIDE))
/* The longest one counts, and no other: so are exceptions made. */
A_CONNECTS(longest, DENIED, add_block(POD_A, 8, 16, WIDE); add_block(POD_A, 32, 128, NARROW); B_TAKES(WIDE))
A_CONNECTS(longest_too, PASSES, add_block(POD_A, 8, 16, WIDE); add_block(POD_A, 32, 128, NARROW);
	   B_TAKES(NARROW))
/* Numbers and identities are two things. */
A_CONNECTS(number_is_no_identity, DENIED, add_block(POD_A, 32, 128, WIDE);
	   add_rule(SUBJECT_B, DIR_INGRESS, RULE(WIDE));
	   add_rule(SUBJECT_B, DIR_INGRESS, RULE(WIDE, .space = TIER_ADMIN)))
A_CONNECTS(identity_is_no_number, DENIED, add_block(POD_A, 32, 128, WIDE); B_TAKES(ID_A))
/* Any other end is an identity's: there is no wildcard by address. */
A_CONNECTS(no_wildcard, DENIED, add_block(POD_A, 32, 128, WIDE); B_TAKES(0))

A_CONNECTS(port, PASSES, add_block(POD_A, 32, 128, WIDE); B_TAKES(WIDE, IPPROTO_TCP, PORT))
A_CONNECTS(other_port, DENIED, add_block(POD_A, 32, 128, WIDE); B_TAKES(WIDE, IPPROTO_TCP, PORT + 1))
A_CONNECTS(range, PASSES, add_block(POD_A, 32, 128, WIDE); B_TAKES(WIDE, IPPROTO_TCP, 0x1f00, .prefix = 8))

/* With the entries for identities they are one tier. */
A_CONNECTS(deny_over_identity, DENIED_BY_RULE, add_block(POD_A, 32, 128, WIDE);
	   add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_TCP, PORT)); B_TAKES(WIDE, .deny = true))
A_CONNECTS(deny_of_identity, DENIED_BY_RULE, add_block(POD_A, 32, 128, WIDE);
	   add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, .deny = true)); B_TAKES(WIDE))
A_CONNECTS(order_in_a_tier, PASSES, add_block(POD_A, 32, 128, WIDE);
	   add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, .deny = true, .order = 2, .space = TIER_ADMIN));
	   add_rule(SUBJECT_B, DIR_INGRESS,
		    RULE(WIDE, .order = 1, .space = TIER_ADMIN | SPACE_BY_ADDRESS)))
A_CONNECTS(baseline, DENIED_BY_RULE, add_block(POD_A, 32, 128, WIDE);
	   add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, .pass = true, .space = TIER_ADMIN));
	   add_rule(SUBJECT_B, DIR_INGRESS,
		    RULE(WIDE, .deny = true, .space = TIER_ADMIN | SPACE_BY_ADDRESS)))

#define REACHES(name, destination, outcome)                                             \
	SETUP(name)                                                                     \
	{                                                                               \
		guard_a();                                                              \
		add_block(destination, 32, 128, WIDE);                                  \
		A_MAY_REACH(WIDE, IPPROTO_TCP, PORT);                                   \
	}                                                                               \
	PKTGEN(name, from_container, lxc_a)                                             \
	{                                                                               \
		make_tcp(frame, v6, POD_A, destination, 1000, PORT, TCP_SYN);           \
	}                                                                               \
	CHECK(name) { outcome; }                                                        \
	PKTGEN_N(name, 2, from_container, lxc_a)                                        \
	{                                                                               \
		make_tcp(frame, v6, POD_A, POD_FREE, 1000, PORT, TCP_SYN);              \
	}                                                                               \
	CHECK_N(name, 2) { DENIED; }

REACHES(to_pod, POD_B, assert_to_pod(lxc_b))
REACHES(to_remote_pod, POD_REMOTE, assert_to_tunnel(NODE_OTHER, ID_A))
REACHES(to_world, WORLD, assert_to_network())
REACHES(to_node, NODE_OTHER, assert_to_network())
REACHES(to_host, NODE, assert_to_stack(ID_A))

#define COMES(name, program, device, source, before)                                    \
	SETUP(name)                                                                     \
	{                                                                               \
		guard_b();                                                              \
		add_block(source, 32, 128, WIDE);                                       \
		B_TAKES(WIDE, IPPROTO_TCP, PORT);                                       \
	}                                                                               \
	PKTGEN(name, program, device)                                                   \
	{                                                                               \
		before;                                                                 \
		make_tcp(frame, v6, source, POD_B, 1000, PORT, TCP_SYN);                \
	}                                                                               \
	CHECK(name) { assert_eq(counted(REASON_FORWARDED, DIR_INGRESS), 1); }           \
	PKTGEN_N(name, 2, program, device)                                              \
	{                                                                               \
		before;                                                                 \
		make_tcp(frame, v6, WORLD_CIDR, POD_B, 1000, PORT, TCP_SYN);            \
	}                                                                               \
	CHECK_N(name, 2) { DENIED; }

#define FROM_TUNNEL(identity)                                                           \
	context->flags |= CONTEXT_TUNNEL;                                               \
	context->tunnel_id = (identity);                                                \
	context->tunnel_peer = address4(NODE_OTHER)

COMES(from_remote_pod, from_overlay, vxlan, POD_REMOTE, FROM_TUNNEL(ID_POD_REMOTE))
COMES(from_world_by_overlay, from_overlay, vxlan, WORLD, FROM_TUNNEL(ID_WORLD))
COMES(from_world, from_netdev, nic, WORLD, )
COMES(from_node, from_netdev, nic, NODE_OTHER, )
COMES(from_stack, to_container, lxc_b, WORLD, context->ingress_ifindex = CONFIG(nic_ifindex))

/* ---- the flow's end, whichever way its packets go ---- */

/* Judged again with an answer: B's ingress is still about A, A's egress still about B. */
SETUP(answer_judged_again)
{
	guard_b();
	enforce(SUBJECT_A, DIR_EGRESS);
	add_block(POD_A, 32, 128, WIDE);
	add_block(POD_B, 32, 128, NARROW);
	B_TAKES(WIDE);
	A_MAY_REACH(NARROW);
}
PKTGEN(answer_judged_again, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_SYN);
}
CHECK(answer_judged_again) { PASSES; }
PKTGEN_N(answer_judged_again, 2, from_container, lxc_b)
{
	next_epoch(SUBJECT_A);
	next_epoch(SUBJECT_B);
	make_tcp(frame, v6, POD_B, POD_A, PORT, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(answer_judged_again, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_B, PORT);

	assert_to_pod(lxc_a);
	test_require(ct);
	assert_eq(ct->side[DIR_INGRESS].epoch, 2);
	assert_eq(ct->side[DIR_EGRESS].epoch, 2);
}
PKTGEN_N(answer_judged_again, 3, from_container, lxc_b)
{
	add_rule(SUBJECT_A, DIR_EGRESS, RULE(NARROW, .deny = true, .space = SPACE_BY_ADDRESS));
	next_epoch(SUBJECT_A);
	make_tcp(frame, v6, POD_B, POD_A, PORT, 1000, TCP_ACK);
}
CHECK_N(answer_judged_again, 3) { DENIED_BY_RULE; }

/* A router's complaint is about the flow: judged again it is for the flow's ends. */
SETUP(error_judged_again)
{
	guard_a();
	add_block(WORLD, 32, 128, WIDE);
	add_block(WORLD_CIDR, 32, 128, NARROW);
	A_MAY_REACH(WIDE);
	A_MAY_REACH(NARROW, .deny = true);
}
PKTGEN(error_judged_again, from_container, lxc_a)
{
	make_udp(frame, v6, POD_A, WORLD, 5000, 53);
}
CHECK(error_judged_again) { assert_to_network(); }
#define COMPLAINS(n)                                                                    \
	PKTGEN_N(error_judged_again, n, to_container, lxc_a)                            \
	{                                                                               \
		context->ingress_ifindex = CONFIG(nic_ifindex);                         \
		if (n == 3)                                                             \
			A_MAY_REACH(WIDE, .deny = true);                                \
		next_epoch(SUBJECT_A);                                                  \
		put_icmp_error(frame, v6, WORLD_CIDR, POD_A,                            \
			       v6 ? TYPE6_UNREACHABLE : TYPE4_UNREACHABLE, v6 ? 4 : 3, 0); \
		put_ip(frame, v6, POD_A, WORLD, IPPROTO_UDP);                           \
		put_udp(frame, 5000, 53);                                               \
		finish(frame);                                                          \
	}
COMPLAINS(2)
CHECK_N(error_judged_again, 2) { assert_eq(result->action, TC_ACT_OK); }
COMPLAINS(3)
CHECK_N(error_judged_again, 3) { DENIED_BY_RULE; }

/* All pieces of a datagram. */
SETUP(fragments)
{
	guard_b();
	add_block(POD_A, 32, 128, WIDE);
	B_TAKES(WIDE, IPPROTO_UDP, 53);
}
PKTGEN(fragments, from_container, lxc_a)
{
	put_ip_fragment(frame, v6, POD_A, POD_B, IPPROTO_UDP, 0 | FRAGMENT_MORE, 7);
	put_udp(frame, 5000, 53);
	put_payload(frame, 16);
	finish(frame);
}
CHECK(fragments) { PASSES; }
PKTGEN_N(fragments, 2, from_container, lxc_a)
{
	next_epoch(SUBJECT_B);
	put_ip_fragment(frame, v6, POD_A, POD_B, IPPROTO_UDP, 3, 7);
	put_payload(frame, 24);
	finish(frame);
}
CHECK_N(fragments, 2) { PASSES; }

/* The port on the node of A's flow from 5000 to WORLD's 80. */
static __noinline TEST_UNUSED __u32 masqueraded_port(__u32 v6)
{
	const union nat_value *value;
	struct in6 from, to;
	union nat_key key;

	from = v6 ? address6(POD_A) : (struct in6){ .w = { address4(POD_A) } };
	to = v6 ? address6(WORLD) : (struct in6){ .w = { address4(WORLD) } };
	if (v6) {
		nat_key_init(&key, &from, bpf_htons(5000), &to, bpf_htons(80), IPPROTO_TCP, NAT_ORIGINAL,
			     true);
		value = nat_find(&key, true);
		return value ? bpf_ntohs(value->v6.port) : 0;
	}
	nat_key_init(&key, &from, bpf_htons(5000), &to, bpf_htons(80), IPPROTO_TCP, NAT_ORIGINAL, false);
	value = nat_find(&key, false);
	return value ? bpf_ntohs(value->v4.port) : 0;
}

/* The pod knows the world by the world's address, though the world knows the pod by the node's. */
SETUP(masqueraded)
{
	guard_a();
	enforce(SUBJECT_A, DIR_INGRESS);
	/* Who has a prefix's identity is outside all the same. */
	add_prefix(WORLD, 24, 48, ID_CIDR, HOST_NONE);
	add_block(WORLD, 32, 128, WIDE);
	add_block(NODE, 32, 128, NARROW);
	A_MAY_REACH(WIDE);
}
PKTGEN(masqueraded, from_container, lxc_a) { make_tcp(frame, v6, POD_A, WORLD, 5000, 80, TCP_SYN); }
CHECK(masqueraded) { assert_to_network(); }
PKTGEN_N(masqueraded, 2, to_netdev, nic) { make_tcp(frame, v6, POD_A, WORLD, 5000, 80, TCP_SYN); }
CHECK_N(masqueraded, 2)
{
	assert_eq(result->action, TC_ACT_OK);
	test_assert(masqueraded_port(v6));
}
/* As the answer is when it has been translated back: judged again for the world's address. */
PKTGEN_N(masqueraded, 3, from_netdev, nic)
{
	next_epoch(SUBJECT_A);
	make_tcp(frame, v6, WORLD, NODE, 80, masqueraded_port(v6), TCP_SYN | TCP_ACK);
}
CHECK_N(masqueraded, 3) { assert_to_pod(lxc_a); }

/* What the trie says in between changes nothing of a flow that was judged under the policy in force. */
SETUP(prefix_comes_and_goes)
{
	guard_b();
	add_block(POD_A, 8, 16, WIDE);
	B_TAKES(WIDE);
}
PKTGEN(prefix_comes_and_goes, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_SYN);
}
CHECK(prefix_comes_and_goes) { PASSES; }
PKTGEN_N(prefix_comes_and_goes, 2, from_container, lxc_a)
{
	add_block(POD_A, 32, 128, NARROW);
	next_generation();
	make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_ACK);
}
CHECK_N(prefix_comes_and_goes, 2) { PASSES; }

/* ---- the node ---- */

SETUP(node_takes)
{
	enforce_node(DIR_INGRESS);
	add_block(WORLD, 32, 128, WIDE);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(WIDE, .space = SPACE_BY_ADDRESS));
}
PKTGEN(node_takes, from_netdev, nic) { make_tcp(frame, v6, WORLD, NODE, 1000, PORT, TCP_SYN); }
CHECK(node_takes) { assert_passed(); }
PKTGEN_N(node_takes, 2, from_netdev, nic) { make_tcp(frame, v6, WORLD_CIDR, NODE, 1000, PORT, TCP_SYN); }
CHECK_N(node_takes, 2) { assert_node_denies(DIR_INGRESS); }
/* Of no flow: an echo reply, and errors, for who sends them. */
PKTGEN_N(node_takes, 3, from_netdev, nic) { make_echo_reply(frame, v6, WORLD, NODE, 7); }
CHECK_N(node_takes, 3) { assert_passed(); }
PKTGEN_N(node_takes, 4, from_netdev, nic) { make_echo_reply(frame, v6, WORLD_CIDR, NODE, 7); }
CHECK_N(node_takes, 4) { assert_node_denies(DIR_INGRESS); }

#define UNKNOWN_FLOWS_ERROR(n, reporter, about)                                         \
	PKTGEN_N(node_takes, n, from_netdev, nic)                                       \
	{                                                                               \
		put_icmp_error(frame, v6, reporter, NODE,                               \
			       v6 ? TYPE6_UNREACHABLE : TYPE4_UNREACHABLE, v6 ? 4 : 3, 0); \
		put_ip(frame, v6, NODE, about, IPPROTO_UDP);                            \
		put_udp(frame, 5000, 53);                                               \
		finish(frame);                                                          \
	}
UNKNOWN_FLOWS_ERROR(5, WORLD, WORLD_CIDR)
CHECK_N(node_takes, 5) { assert_passed(); }
UNKNOWN_FLOWS_ERROR(6, WORLD_CIDR, WORLD)
CHECK_N(node_takes, 6) { assert_node_denies(DIR_INGRESS); }

SETUP(node_sends)
{
	enforce_node(DIR_EGRESS);
	add_block(WORLD, 32, 128, WIDE);
	add_rule(SUBJECT_HOST, DIR_EGRESS, RULE(WIDE, .space = SPACE_BY_ADDRESS));
}
PKTGEN(node_sends, to_netdev, nic) { make_tcp(frame, v6, NODE, WORLD, 1000, PORT, TCP_SYN); }
CHECK(node_sends) { assert_passed(); }
/* Judged again with the answer. */
PKTGEN_N(node_sends, 2, from_netdev, nic)
{
	next_epoch(SUBJECT_HOST);
	make_tcp(frame, v6, WORLD, NODE, PORT, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(node_sends, 2) { assert_passed(); }
PKTGEN_N(node_sends, 3, to_netdev, nic) { make_tcp(frame, v6, NODE, WORLD_CIDR, 1000, PORT, TCP_SYN); }
CHECK_N(node_sends, 3) { assert_node_denies(DIR_EGRESS); }
PKTGEN_N(node_sends, 4, to_netdev, nic) { make_echo_reply(frame, v6, NODE, WORLD, 7); }
CHECK_N(node_sends, 4) { assert_passed(); }

/* Policies that speak of addresses alone are policies: what cannot be read is refused for them. */
SETUP(node_under_addresses)
{
	add_cluster_with_policy();
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(WIDE, .deny = true, .space = SPACE_BY_ADDRESS));
}
PKTGEN(node_under_addresses, from_netdev, nic)
{
	make_tcp(frame, v6, WORLD, NODE, 1000, PORT, TCP_SYN);
	tcp_of(frame)->doff = 4;
}
CHECK(node_under_addresses) { assert_dropped(DROP_CT_INVALID_HDR); }
