/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The overlay: who its packets are from, whom they reach, and what leaves by it. */
#include "tests/lib/scenario.h"

#define FROM_TUNNEL(identity)                                                           \
	context->flags |= CONTEXT_TUNNEL;                                               \
	context->tunnel_id = (identity);                                                \
	context->tunnel_peer = address4(NODE_OTHER)

/* ---- identities ---- */

/* The VNI says who sent it, whatever its address. */
#define VNI(name, number, source, believed)                                             \
	SETUP(name)                                                                     \
	{                                                                               \
		add_cluster();                                                          \
		enforce(SUBJECT_B, DIR_INGRESS);                                        \
		add_rule(SUBJECT_B, DIR_INGRESS, RULE(believed));                       \
	}                                                                               \
	PKTGEN(name, from_overlay, vxlan)                                               \
	{                                                                               \
		FROM_TUNNEL(number);                                                    \
		make_tcp(frame, v6, source, POD_B, 1000, 80, TCP_SYN);                  \
	}                                                                               \
	CHECK(name)                                                                     \
	{                                                                               \
		struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, source, 1000, POD_B, 80); \
                                                                                        \
		assert_to_pod(lxc_b);                                                   \
		assert_one_hop_less();                                                  \
		assert_eq(counted(REASON_FORWARDED, DIR_INGRESS), 1);                   \
		assert_eq(counted(REASON_FORWARDED, DIR_EGRESS), 0);                    \
		test_require(ct);                                                       \
		assert_eq(ct->side[DIR_INGRESS].identity, believed);                    \
		assert_eq(ct->side[DIR_INGRESS].owner, ENDPOINT_B);                     \
		assert_eq(ct->side[DIR_EGRESS].owner, 0);                               \
	}                                                                               \
	PKTGEN_N(name, 2, from_overlay, vxlan)                                          \
	{                                                                               \
		FROM_TUNNEL(number);                                                    \
		make_tcp(frame, v6, source, POD_B, 1000, 80, TCP_ACK);                  \
	}                                                                               \
	CHECK_N(name, 2)                                                                \
	{                                                                               \
		assert_to_pod(lxc_b);                                                   \
		assert_one_hop_less();                                                  \
	}

VNI(vni_of_pod, ID_POD_REMOTE, POD_REMOTE, ID_POD_REMOTE)
VNI(vni_of_unknown_pod, 2222, POD_FREE, 2222)
VNI(vni_of_host, ID_HOST, ROUTER_OTHER, ID_REMOTE_NODE)
VNI(vni_of_world, ID_WORLD, WORLD, ID_WORLD)
/* Not every number in the range of workloads and beyond is one of theirs. */
VNI(vni_large, 0xfeffff, WORLD_CIDR, 0xfeffff)

/* Who is outside, and of which prefix there, this node knows itself: the other may be ahead, or behind. */
VNI(vni_of_prefix_unknown_here, 0xffffff, WORLD_CIDR, ID_WORLD)
VNI(vni_of_world_ipv4, 9, WORLD, ID_WORLD)
VNI(vni_of_world_ipv6, 10, WORLD, ID_WORLD)

#define VNI_OF_OUTSIDE(name, number, here, believed)                                    \
	SETUP(name)                                                                     \
	{                                                                               \
		add_cluster();                                                          \
		add_prefix(WORLD_CIDR, 0, 0, 9, HOST_NONE);                             \
		add_prefix(WORLD_CIDR, 24, 48, here, HOST_NONE);                        \
		enforce(SUBJECT_B, DIR_INGRESS);                                        \
		add_rule(SUBJECT_B, DIR_INGRESS, RULE(believed));                       \
	}                                                                               \
	PKTGEN(name, from_overlay, vxlan)                                               \
	{                                                                               \
		FROM_TUNNEL(number);                                                    \
		make_tcp(frame, v6, WORLD_CIDR, POD_B, 1000, 80, TCP_SYN);              \
	}                                                                               \
	CHECK(name) { assert_to_pod(lxc_b); }

VNI_OF_OUTSIDE(prefix_known_here_alone, ID_WORLD, ID_CIDR, ID_CIDR)
VNI_OF_OUTSIDE(prefix_numbered_largest, ID_WORLD, 0xffffff, 0xffffff)
VNI_OF_OUTSIDE(prefix_numbered_smallest, 9, 0xff0000, 0xff0000)
VNI_OF_OUTSIDE(prefix_longer_here, 0xff0001, ID_CIDR, ID_CIDR)
/* Whom the other node calls a pod, or says is outside though this one knows better, is left alone. */
VNI_OF_OUTSIDE(pod_in_a_prefix, ID_POD_REMOTE, ID_CIDR, ID_POD_REMOTE)
VNI_OF_OUTSIDE(outside_at_a_pods, ID_WORLD, ID_POD_REMOTE, ID_WORLD)

SETUP(vni_zero) { add_cluster(); }
PKTGEN(vni_zero, from_overlay, vxlan)
{
	FROM_TUNNEL(0);
	make_tcp(frame, v6, POD_REMOTE, POD_B, 1000, 80, TCP_SYN);
}
CHECK(vni_zero) { assert_dropped(DROP_INVALID_IDENTITY); }

SETUP(no_tunnel) { add_cluster(); }
PKTGEN(no_tunnel, from_overlay, vxlan)
{
	make_tcp(frame, v6, POD_REMOTE, POD_B, 1000, 80, TCP_SYN);
}
CHECK(no_tunnel) { assert_dropped(DROP_NO_TUNNEL_KEY); }

/* The other node's host is no host here: its probes are its own affair. */
SETUP(host_of_other_node)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
}
PKTGEN(host_of_other_node, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_HOST);
	make_tcp(frame, v6, ROUTER_OTHER, POD_B, 1000, 80, TCP_SYN);
}
CHECK(host_of_other_node) { assert_dropped(DROP_POLICY); }

/* A sender that changes is judged again, in the middle of a flow and without any change here. */
SETUP(vni_changes)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_POD_REMOTE));
}
PKTGEN(vni_changes, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE);
	make_tcp(frame, v6, POD_REMOTE, POD_B, 1000, 80, TCP_SYN);
}
CHECK(vni_changes) { assert_to_pod(lxc_b); }
PKTGEN_N(vni_changes, 2, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE + 1);
	make_tcp(frame, v6, POD_REMOTE, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(vni_changes, 2) { assert_dropped(DROP_POLICY); }
PKTGEN_N(vni_changes, 3, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE);
	make_tcp(frame, v6, POD_REMOTE, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(vni_changes, 3) { assert_to_pod(lxc_b); }

/* Answers come from whom they come. */
SETUP(answers)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_INGRESS);
	enforce(SUBJECT_A, DIR_EGRESS);
	add_rule(SUBJECT_A, DIR_EGRESS, RULE(ID_POD_REMOTE, IPPROTO_TCP, 80));
}
PKTGEN(answers, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_REMOTE, 1000, 80, TCP_SYN);
}
CHECK(answers)
{
	assert_to_tunnel(NODE_OTHER, ID_A);
	assert_unchanged();
	assert_eq(result->mark, 0);
	assert_eq(counted(REASON_FORWARDED, DIR_EGRESS), 1);
	assert_eq(counted(REASON_FORWARDED, DIR_INGRESS), 0);
}
PKTGEN_N(answers, 2, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE);
	make_tcp(frame, v6, POD_REMOTE, POD_A, 80, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(answers, 2)
{
	assert_to_pod(lxc_a);
	assert_one_hop_less();
}
PKTGEN_N(answers, 3, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, POD_REMOTE, 1000, 80, TCP_ACK);
}
CHECK_N(answers, 3)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_REMOTE, 80);

	assert_to_tunnel(NODE_OTHER, ID_A);
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 2);
	assert_eq(ct->packets[CT_REPLY], 1);
}
PKTGEN_N(answers, 4, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE);
	make_tcp(frame, v6, POD_REMOTE, POD_A, 80, 1001, TCP_SYN | TCP_ACK);
}
CHECK_N(answers, 4) { assert_dropped(DROP_POLICY); }

/* ---- destinations ---- */

SETUP(to_nobody) { add_cluster(); }
PKTGEN(to_nobody, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE);
	make_udp(frame, v6, POD_REMOTE, POD_FREE, 5000, 53);
}
CHECK(to_nobody) { assert_dropped(DROP_NO_LXC); }
/* An overlay is no way to the world, nor back to where it came from. */
PKTGEN_N(to_nobody, 2, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE);
	make_udp(frame, v6, POD_REMOTE, WORLD, 5000, 53);
}
CHECK_N(to_nobody, 2) { assert_dropped(DROP_NO_LXC); }
PKTGEN_N(to_nobody, 3, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE);
	make_udp(frame, v6, POD_REMOTE, ROUTER_OTHER, 5000, 53);
}
CHECK_N(to_nobody, 3) { assert_dropped(DROP_NO_LXC); }

SETUP(to_node) { add_cluster(); }
PKTGEN(to_node, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE);
	make_udp(frame, v6, POD_REMOTE, ROUTER, 5000, 53);
}
CHECK(to_node)
{
	assert_to_stack(ID_POD_REMOTE);
	assert_unchanged();
}
PKTGEN_N(to_node, 2, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_HOST);
	make_echo(frame, v6, ROUTER_OTHER, NODE, 5);
}
CHECK_N(to_node, 2) { assert_to_stack(ID_REMOTE_NODE); }

SETUP(tagged) { add_cluster(); }
PKTGEN(tagged, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE);
	context->flags |= CONTEXT_VLAN;
	context->vlan_tci = 5;
	make_udp(frame, v6, POD_REMOTE, POD_B, 5000, 53);
}
CHECK(tagged) { assert_dropped(DROP_UNSUPPORTED_L2); }

/* Echo and its answer between nodes. */
SETUP(echo_across)
{
	add_cluster();
	enforce(SUBJECT_A, DIR_INGRESS);
}
PKTGEN(echo_across, from_container, lxc_a) { make_echo(frame, v6, POD_A, POD_REMOTE, 9); }
CHECK(echo_across) { assert_to_tunnel(NODE_OTHER, ID_A); }
PKTGEN_N(echo_across, 2, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE);
	make_echo_reply(frame, v6, POD_REMOTE, POD_A, 9);
}
CHECK_N(echo_across, 2) { assert_to_pod(lxc_a); }
PKTGEN_N(echo_across, 3, from_overlay, vxlan)
{
	FROM_TUNNEL(ID_POD_REMOTE);
	make_echo(frame, v6, POD_REMOTE, POD_A, 9);
}
CHECK_N(echo_across, 3) { assert_dropped(DROP_POLICY); }

/* ---- what has a prefix there ---- */

SETUP(prefix_in_tunnel)
{
	add_cluster();
	add_prefix(WORLD_CIDR, 24, 48, ID_CIDR, NODE_OTHER);
}
PKTGEN(prefix_in_tunnel, from_container, lxc_a)
{
	make_udp(frame, v6, POD_A, WORLD_CIDR, 5000, 53);
}
CHECK(prefix_in_tunnel) { assert_to_tunnel(NODE_OTHER, ID_A); }
PKTGEN_N(prefix_in_tunnel, 2, from_container, lxc_a)
{
	make_udp(frame, v6, POD_A, WORLD_CIDR, 5000, 53);
}
CHECK_N(prefix_in_tunnel, 2) { assert_to_tunnel(NODE_OTHER, ID_A); }

/* The longest prefix wins, a whole address over all of them. */
SETUP(longest_prefix)
{
	add_cluster();
	add_prefix(HOST_NONE, 0, 0, 70, HOST_NONE);
	add_prefix(WORLD_CIDR, 8, 16, 71, HOST_NONE);
	add_prefix(WORLD_CIDR, 24, 48, 72, HOST_NONE);
	add_address(WORLD, 73, HOST_NONE);
	enforce(SUBJECT_A, DIR_EGRESS);
}
#define TO_WHOM(n, destination, who)                                                    \
	PKTGEN_N(longest_prefix, n, from_container, lxc_a)                              \
	{                                                                               \
		add_rule(SUBJECT_A, DIR_EGRESS, RULE(who));                             \
		next_epoch(SUBJECT_A);                                                  \
		make_udp(frame, v6, POD_A, destination, 5000, 53);                      \
	}                                                                               \
	CHECK_N(longest_prefix, n)                                                      \
	{                                                                               \
		struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, POD_A, 5000, destination, 53); \
                                                                                        \
		assert_to_network();                                                    \
		test_require(ct);                                                       \
		assert_eq(ct->side[DIR_EGRESS].identity, who);                          \
	}
TO_WHOM(1, WORLD_CIDR, 72)
TO_WHOM(2, WORLD, 73)

/* ---- leaving ---- */

SETUP(leaves) { add_cluster(); }
PKTGEN(leaves, to_overlay, vxlan)
{
	FROM_TUNNEL(ID_A);
	make_udp(frame, v6, POD_A, POD_REMOTE, 5000, 53);
}
CHECK(leaves)
{
	assert_eq(result->action, TC_ACT_OK);
	assert_eq(result->mark & MARK_MAGIC_MASK, MARK_MAGIC_OVERLAY);
	assert_unchanged();
}
PKTGEN_N(leaves, 2, to_overlay, vxlan) { make_udp(frame, v6, POD_A, POD_REMOTE, 5000, 53); }
CHECK_N(leaves, 2) { assert_dropped(DROP_NO_TUNNEL_ENDPOINT); }

/* Without an overlay nothing is sent there. */
SETUP(no_overlay) { add_cluster(); }
PKTGEN(no_overlay, from_container, lxc_a)
{
	context->variant = VARIANT_NATIVE;
	make_udp(frame, v6, POD_A, POD_REMOTE, 5000, 53);
}
CHECK(no_overlay) { assert_dropped(DROP_NO_TUNNEL_ENDPOINT); }
