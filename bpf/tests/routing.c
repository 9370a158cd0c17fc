/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where packets go in each mode: overlay or native, endpoint routes, by the FIB or the stack; and in from the network. */
#include "tests/lib/scenario.h"

#define A_SENDS(name, n, to, config)                                                    \
	PKTGEN_N(name, n, from_container, lxc_a)                                        \
	{                                                                               \
		context->variant = config;                                              \
		make_tcp(frame, v6, POD_A, to, 1000, 80, n == 1 ? TCP_SYN : TCP_ACK);   \
	}

/* The first packet, and the second, which takes the short way. */
#define GOES(name, to, config, outcome)                                                 \
	SETUP(name) { add_cluster(); }                                                  \
	A_SENDS(name, 1, to, config)                                                    \
	CHECK(name) { outcome; }                                                        \
	A_SENDS(name, 2, to, config)                                                    \
	CHECK_N(name, 2) { outcome; }

#define KEPT assert_eq(hops_of(frame, v6), DEFAULT_HOPS)
#define STACK assert_to_stack(ID_A); assert_unchanged()
#define NETWORK                                                                         \
	assert_to_network();                                                            \
	assert_one_hop_less();                                                          \
	assert_eq(result->mark, mark_of_identity(ID_A))

/* ---- by default ---- */

GOES(to_pod, POD_B, 0, assert_to_pod(lxc_b); assert_one_hop_less(); assert_eq(result->mark, 0))
GOES(to_itself, POD_A, 0, assert_to_pod(lxc_a); assert_one_hop_less())
GOES(to_remote_pod, POD_REMOTE, 0, assert_to_tunnel(NODE_OTHER, ID_A); KEPT; assert_eq(result->mark, 0))
GOES(to_other_router, ROUTER_OTHER, 0, assert_to_tunnel(NODE_OTHER, ID_A))
GOES(to_world, WORLD, 0, NETWORK)
GOES(to_other_node, NODE_OTHER, 0, NETWORK)
GOES(to_node, NODE, 0, STACK)
GOES(to_router, ROUTER, 0, STACK)
/* Nothing that is for more than one leaves the node: the stack knows what to do with it. */
GOES(to_broadcast, BROADCAST, 0, STACK)
GOES(to_multicast, MULTICAST, 0, STACK)

/* ---- the stack instead of the FIB ---- */

GOES(stack_to_world, WORLD, VARIANT_STACK_ROUTING, STACK)
GOES(stack_to_other_node, NODE_OTHER, VARIANT_STACK_ROUTING, STACK)
GOES(stack_to_pod, POD_B, VARIANT_STACK_ROUTING, assert_to_pod(lxc_b); assert_one_hop_less())
GOES(stack_to_remote_pod, POD_REMOTE, VARIANT_STACK_ROUTING, assert_to_tunnel(NODE_OTHER, ID_A))

/* ---- native routing ---- */

/* Without an overlay the ipcache has no tunnel endpoints; the node's routes lead to the others' pods. */
#define NATIVE(name, config, outcome)                                                   \
	SETUP(name)                                                                     \
	{                                                                               \
		add_cluster();                                                          \
		add_address(POD_REMOTE, ID_POD_REMOTE, HOST_NONE);                      \
		enforce(SUBJECT_A, DIR_EGRESS);                                         \
		add_rule(SUBJECT_A, DIR_EGRESS, RULE(ID_POD_REMOTE));                   \
	}                                                                               \
	A_SENDS(name, 1, POD_REMOTE, config)                                            \
	CHECK(name) { outcome; }                                                        \
	A_SENDS(name, 2, POD_REMOTE, config)                                            \
	CHECK_N(name, 2) { outcome; }

NATIVE(native, VARIANT_NATIVE, NETWORK)
NATIVE(native_by_stack, VARIANT_NATIVE | VARIANT_STACK_ROUTING, STACK)
GOES(native_to_pod, POD_B, VARIANT_NATIVE, assert_to_pod(lxc_b); assert_one_hop_less())
GOES(native_to_world, WORLD, VARIANT_NATIVE, NETWORK)
GOES(native_to_node, NODE, VARIANT_NATIVE, STACK)

/* ---- endpoint routes: the stack hands over, and the other end judges there ---- */

SETUP(endpoint_route)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
}
A_SENDS(endpoint_route, 1, POD_B, VARIANT_ENDPOINT_ROUTES)
CHECK(endpoint_route)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, POD_A, 1000, POD_B, 80);

	STACK;
	test_require(ct);
	assert_eq(ct->side[DIR_EGRESS].owner, ENDPOINT_A);
	assert_eq(ct->side[DIR_INGRESS].owner, 0);
}
PKTGEN_N(endpoint_route, 2, to_container, lxc_b)
{
	context->variant = VARIANT_ENDPOINT_ROUTES;
	context->ingress_ifindex = CONFIG(lxc_a_ifindex);
	context->mark = mark_of_identity(ID_A);
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_SYN);
}
CHECK_N(endpoint_route, 2) { assert_dropped(DROP_POLICY); }
PKTGEN_N(endpoint_route, 3, to_container, lxc_b)
{
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_A, IPPROTO_TCP, 80));
	next_epoch(SUBJECT_B);
	context->variant = VARIANT_ENDPOINT_ROUTES;
	context->ingress_ifindex = CONFIG(lxc_a_ifindex);
	context->mark = mark_of_identity(ID_A);
	make_tcp(frame, v6, POD_A, POD_B, 1000, 80, TCP_SYN);
}
CHECK_N(endpoint_route, 3) { assert_eq(result->action, TC_ACT_OK); }
PKTGEN_N(endpoint_route, 4, from_container, lxc_b)
{
	context->variant = VARIANT_ENDPOINT_ROUTES;
	make_tcp(frame, v6, POD_B, POD_A, 80, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(endpoint_route, 4) { assert_to_stack(ID_B); }
PKTGEN_N(endpoint_route, 5, to_container, lxc_a)
{
	context->variant = VARIANT_ENDPOINT_ROUTES;
	context->ingress_ifindex = CONFIG(lxc_b_ifindex);
	context->mark = mark_of_identity(ID_B);
	make_tcp(frame, v6, POD_B, POD_A, 80, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(endpoint_route, 5) { assert_eq(result->action, TC_ACT_OK); }

/* From the overlay to the stack, after judgement and with the sender's mark. */
SETUP(endpoint_route_overlay) { add_cluster(); }
PKTGEN(endpoint_route_overlay, from_overlay, vxlan)
{
	context->variant = VARIANT_ENDPOINT_ROUTES;
	context->flags |= CONTEXT_TUNNEL;
	context->tunnel_id = ID_POD_REMOTE;
	make_tcp(frame, v6, POD_REMOTE, POD_B, 1000, 80, TCP_SYN);
}
CHECK(endpoint_route_overlay)
{
	assert_to_stack(ID_POD_REMOTE);
	assert_unchanged();
}

/* ---- in from the network ---- */

#define ARRIVES(name, source, to, config, setup, outcome)                               \
	SETUP(name)                                                                     \
	{                                                                               \
		add_cluster();                                                          \
		setup;                                                                  \
	}                                                                               \
	PKTGEN(name, from_netdev, nic)                                                  \
	{                                                                               \
		context->variant = config;                                              \
		context->ingress_ifindex = CONFIG(nic_ifindex);                         \
		make_tcp(frame, v6, source, to, 1000, 80, TCP_SYN);                     \
	}                                                                               \
	CHECK(name) { outcome; }                                                        \
	PKTGEN_N(name, 2, from_netdev, nic)                                             \
	{                                                                               \
		context->variant = config;                                              \
		context->ingress_ifindex = CONFIG(nic_ifindex);                         \
		make_tcp(frame, v6, source, to, 1000, 80, TCP_ACK);                     \
	}                                                                               \
	CHECK_N(name, 2) { outcome; }

#define B_TAKES(who)                                                                    \
	enforce(SUBJECT_B, DIR_INGRESS);                                                \
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(who, IPPROTO_TCP, 80))
#define PASSES                                                                          \
	assert_eq(result->action, TC_ACT_OK);                                           \
	assert_unchanged()

ARRIVES(world_to_pod, WORLD, POD_B, 0, B_TAKES(ID_WORLD), assert_to_pod(lxc_b); assert_one_hop_less())
ARRIVES(world_denied, WORLD, POD_B, 0, B_TAKES(ID_HOST), assert_dropped(DROP_POLICY))
ARRIVES(node_to_pod, NODE_OTHER, POD_B, 0, B_TAKES(ID_REMOTE_NODE), assert_to_pod(lxc_b))
/* Nobody out there is the node, or a pod that comes through the overlay. */
ARRIVES(false_node_to_pod, NODE, POD_B, 0, B_TAKES(ID_HOST), assert_dropped(DROP_POLICY))
ARRIVES(false_pod, POD_REMOTE, POD_B, 0, , assert_dropped(DROP_INVALID_SIP))
ARRIVES(false_local_pod, POD_A, POD_B, 0, , assert_dropped(DROP_INVALID_SIP))
/* With native routing pods do. */
ARRIVES(native_pod, POD_REMOTE, POD_B, VARIANT_NATIVE, B_TAKES(ID_POD_REMOTE),
	assert_to_pod(lxc_b); assert_one_hop_less())
ARRIVES(native_pod_denied, POD_REMOTE, POD_B, VARIANT_NATIVE, B_TAKES(ID_A),
	assert_dropped(DROP_POLICY))
/* With endpoint routes the stack hands over. */
ARRIVES(endpoint_route_in, WORLD, POD_B, VARIANT_ENDPOINT_ROUTES, B_TAKES(ID_WORLD),
	assert_to_stack(ID_WORLD); assert_unchanged())
/* What is for nobody here is no affair of the datapath's. */
ARRIVES(for_node, WORLD, NODE, 0, , PASSES)
ARRIVES(for_other, WORLD, NODE_OTHER, 0, , PASSES)
ARRIVES(for_free_address, WORLD, POD_FREE, 0, , PASSES)

SETUP4(arp_passes) { add_cluster(); }
PKTGEN4(arp_passes, from_netdev, nic) { make_arp(frame, 1, NODE_OTHER, NODE); }
CHECK4(arp_passes) { PASSES; }

SETUP(cut_passes) { add_cluster(); }
PKTGEN(cut_passes, from_netdev, nic)
{
	make_udp(frame, v6, WORLD, NODE, 5000, 53);
	context->flags |= CONTEXT_LENGTH;
	context->length = frame->l4 - 1;
}
CHECK(cut_passes) { assert_eq(result->action, TC_ACT_OK); }

/* A mark that came from a device's driver, or from anywhere: none is believed. */
SETUP(mark_is_cleared) { add_cluster(); B_TAKES(ID_A); }
PKTGEN(mark_is_cleared, from_netdev, nic)
{
	context->mark = mark_of_identity(ID_A);
	context->ingress_ifindex = CONFIG(nic_ifindex);
	make_tcp(frame, v6, WORLD, POD_B, 1000, 80, TCP_SYN);
}
CHECK(mark_is_cleared) { assert_dropped(DROP_POLICY); }
PKTGEN_N(mark_is_cleared, 2, from_netdev, nic)
{
	context->mark = mark_of_identity(ID_A);
	make_tcp(frame, v6, WORLD, NODE, 1000, 80, TCP_SYN);
}
CHECK_N(mark_is_cleared, 2)
{
	assert_eq(result->action, TC_ACT_OK);
	assert_eq(result->mark, 0);
}

/* The overlay's own packets reach the device that takes them apart. */
SETUP4(overlay_passes) { add_cluster(); }
PKTGEN4(overlay_passes, from_netdev, nic)
{
	make_udp(frame, v6, NODE_OTHER, NODE, 5000, 4789);
}
CHECK4(overlay_passes) { PASSES; }

/* A pod's answer to who reached it by its own address is one, whichever way it leaves. */
SETUP(answer_to_world)
{
	add_cluster();
	B_TAKES(ID_WORLD);
	enforce(SUBJECT_B, DIR_EGRESS);
}
PKTGEN(answer_to_world, from_netdev, nic)
{
	context->ingress_ifindex = CONFIG(nic_ifindex);
	make_tcp(frame, v6, WORLD, POD_B, 1000, 80, TCP_SYN);
}
CHECK(answer_to_world) { assert_to_pod(lxc_b); }
PKTGEN_N(answer_to_world, 2, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, WORLD, 80, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(answer_to_world, 2)
{
	assert_to_network();
	assert_one_hop_less();
}
PKTGEN_N(answer_to_world, 3, to_netdev, nic)
{
	context->ingress_ifindex = CONFIG(lxc_b_ifindex);
	context->mark = mark_of_identity(ID_B);
	make_tcp(frame, v6, POD_B, WORLD, 80, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(answer_to_world, 3) { PASSES; }
