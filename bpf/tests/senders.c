/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who a packet is from: what a pod may claim, and what is believed of packets that come by the stack. */
#include "tests/lib/scenario.h"

/* ---- from_container: a pod speaks with its own address ---- */

#define CLAIMS(name, source, reason)                                                    \
	SETUP(name) { add_cluster(); }                                                  \
	PKTGEN(name, from_container, lxc_a) { make_udp(frame, v6, source, POD_B, 5000, 53); } \
	CHECK(name)                                                                     \
	{                                                                               \
		assert_dropped(reason);                                                 \
		assert_unchanged();                                                     \
		test_assert(!flow_of(v6, IPPROTO_UDP, source, 5000, POD_B, 53));        \
	}

CLAIMS(claims_nothing, HOST_NONE, DROP_INVALID_SIP)
CLAIMS(claims_neighbour, POD_B, DROP_INVALID_SIP)
CLAIMS(claims_free_address, POD_FREE, DROP_INVALID_SIP)
CLAIMS(claims_remote_pod, POD_REMOTE, DROP_INVALID_SIP)
CLAIMS(claims_router, ROUTER, DROP_INVALID_SIP)
CLAIMS(claims_node, NODE, DROP_INVALID_SIP)
CLAIMS(claims_other_node, NODE_OTHER, DROP_INVALID_SIP)
CLAIMS(claims_world, WORLD, DROP_INVALID_SIP)
CLAIMS(claims_loopback, LOOPBACK, DROP_INVALID_SIP)
CLAIMS(claims_broadcast, BROADCAST, DROP_INVALID_SIP)

SETUP6(claims_link_local) { add_cluster(); }
PKTGEN6(claims_link_local, from_container, lxc_a)
{
	make_udp(frame, v6, LINK_LOCAL, POD_B, 5000, 53);
}
CHECK6(claims_link_local) { assert_dropped(DROP_INVALID_SIP); }

/* An IPv4-only pod sends no IPv6, not even from the unspecified address, and the other way round. */
SETUP(single_family)
{
	struct endpoint *row;

	add_cluster();
	row = endpoint_row(SLOT_A);
	if (row && v6)
		row->ipv6 = address6(HOST_NONE);
	else if (row)
		row->ipv4 = 0;
}
PKTGEN(single_family, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
CHECK(single_family) { assert_dropped(DROP_INVALID_SIP); }
PKTGEN_N(single_family, 2, from_container, lxc_a)
{
	make_udp(frame, v6, HOST_NONE, POD_B, 5000, 53);
}
CHECK_N(single_family, 2) { assert_dropped(DROP_INVALID_SIP); }
PKTGEN_N(single_family, 3, from_container, lxc_a)
{
	make_udp(frame, !v6, POD_A, POD_B, 5000, 53);
}
CHECK_N(single_family, 3) { assert_to_pod(lxc_b); }

/* Marks and the like are the node's: what a pod's stack left on the packet means nothing. */
SETUP(claims_by_mark)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_POD_REMOTE));
}
PKTGEN(claims_by_mark, from_container, lxc_a)
{
	context->mark = mark_of_identity(ID_POD_REMOTE);
	make_udp(frame, v6, POD_A, POD_B, 5000, 53);
}
CHECK(claims_by_mark)
{
	assert_dropped(DROP_POLICY);
	assert_eq(result->mark, 0);
}

/* ---- from_container: frames ---- */

SETUP(unregistered) { set_node_flags(NODE_EVENTS); }
PKTGEN(unregistered, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
CHECK(unregistered) { assert_dropped(DROP_NO_ENDPOINT_ROW); }
PKTGEN_N(unregistered, 2, to_container, lxc_a) { make_udp(frame, v6, ROUTER, POD_A, 5000, 53); }
CHECK_N(unregistered, 2) { assert_dropped(DROP_NO_ENDPOINT_ROW); }

/* A tag that the device has taken off, and one that stands in the frame. */
SETUP(tagged) { add_cluster(); }
PKTGEN(tagged, from_container, lxc_a)
{
	context->flags |= CONTEXT_VLAN;
	context->vlan_tci = 100;
	make_udp(frame, v6, POD_A, POD_B, 5000, 53);
}
CHECK(tagged) { assert_dropped(DROP_UNSUPPORTED_L2); }
PKTGEN_N(tagged, 2, from_container, lxc_a)
{
	put_ethernet(frame, v6 ? ETH_P_IPV6 : ETH_P_IP);
	put_vlan(frame, 100);
	put_ip(frame, v6, POD_A, POD_B, IPPROTO_UDP);
	put_udp(frame, 5000, 53);
	finish(frame);
}
CHECK_N(tagged, 2) { assert_dropped(DROP_UNKNOWN_L3); }

#define ETHERTYPE(name, type)                                                           \
	SETUP4(name) { add_cluster(); }                                                 \
	PKTGEN4(name, from_container, lxc_a)                                            \
	{                                                                               \
		put_ethernet(frame, type);                                              \
		put_payload(frame, 46);                                                 \
	}                                                                               \
	CHECK4(name) { assert_dropped(DROP_UNKNOWN_L3); }                               \
	PKTGEN4_N(name, 2, from_overlay, vxlan)                                         \
	{                                                                               \
		context->flags |= CONTEXT_TUNNEL;                                       \
		context->tunnel_id = ID_POD_REMOTE;                                     \
		put_ethernet(frame, type);                                              \
		put_payload(frame, 46);                                                 \
	}                                                                               \
	CHECK4_N(name, 2) { assert_dropped(DROP_UNKNOWN_L3); }

ETHERTYPE(lldp, 0x88cc)
ETHERTYPE(mpls, 0x8847)
ETHERTYPE(pppoe, 0x8864)
ETHERTYPE(length_field, 46)
ETHERTYPE(no_type, 0)

/* ---- to_container: who the stack's packets are from ---- */

#define FROM_STACK(name, source, from_device, with_mark, believed)                      \
	SETUP(name)                                                                     \
	{                                                                               \
		add_cluster();                                                          \
		add_prefix(WORLD_CIDR, 24, 48, ID_CIDR, HOST_NONE);                     \
		enforce(SUBJECT_B, DIR_INGRESS);                                        \
		add_rule(SUBJECT_B, DIR_INGRESS, RULE(believed));                       \
	}                                                                               \
	PKTGEN(name, to_container, lxc_b)                                               \
	{                                                                               \
		context->ingress_ifindex = from_device;                                 \
		context->mark = with_mark;                                              \
		make_udp(frame, v6, source, POD_B, 5000, 53);                           \
	}                                                                               \
	CHECK(name)                                                                     \
	{                                                                               \
		struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, source, 5000, POD_B, 53); \
                                                                                        \
		assert_eq(result->action, TC_ACT_OK);                                   \
		assert_unchanged();                                                     \
		test_require(ct);                                                       \
		assert_eq(ct->side[DIR_INGRESS].identity, believed);                    \
		assert_eq(counted(REASON_FORWARDED, DIR_INGRESS), 1);                   \
	}                                                                               \
	/* The short way comes to the same. */                                          \
	PKTGEN_N(name, 2, to_container, lxc_b)                                          \
	{                                                                               \
		context->ingress_ifindex = from_device;                                 \
		context->mark = with_mark;                                              \
		make_udp(frame, v6, source, POD_B, 5000, 53);                           \
	}                                                                               \
	CHECK_N(name, 2) { assert_eq(result->action, TC_ACT_OK); }

#define NIC CONFIG(nic_ifindex)
#define LXC_A CONFIG(lxc_a_ifindex)

FROM_STACK(from_node, ROUTER, 0, 0, ID_HOST)
/* Whatever address the node chose. */
FROM_STACK(from_node_as_world, WORLD, 0, 0, ID_HOST)
FROM_STACK(from_world, WORLD, NIC, 0, ID_WORLD)
FROM_STACK(from_cidr, WORLD_CIDR, NIC, 0, ID_CIDR)
FROM_STACK(from_other_node, NODE_OTHER, NIC, 0, ID_REMOTE_NODE)
FROM_STACK(from_marked_pod, POD_A, LXC_A, mark_of_identity(ID_A), ID_A)
FROM_STACK(from_marked_remote, POD_REMOTE, NIC, mark_of_identity(ID_POD_REMOTE), ID_POD_REMOTE)
/* An identity has 24 bits. */
FROM_STACK(from_marked_cidr, WORLD_CIDR, NIC, mark_of_identity(0xabcdef), 0xabcdef)
/* The node's addresses, coming in by a device: nobody but the node is believed to be it. */
FROM_STACK(from_false_router, ROUTER, NIC, 0, ID_WORLD)
FROM_STACK(from_false_node, NODE, NIC, 0, ID_WORLD)
/* Somebody else's mark is none. */
FROM_STACK(from_other_mark, WORLD, NIC, 0x0a00 | ID_A << 16, ID_WORLD)

/* Called host by the ipcache, but not come from it: the world (the rule for translated sources). */
SETUP(translated_source)
{
	add_cluster();
	add_address(WORLD, ID_HOST, HOST_NONE);
	enforce(SUBJECT_B, DIR_INGRESS);
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_WORLD, IPPROTO_UDP, 53));
}
PKTGEN(translated_source, to_container, lxc_b)
{
	context->ingress_ifindex = NIC;
	make_udp(frame, v6, WORLD, POD_B, 5000, 54);
}
CHECK(translated_source) { assert_dropped(DROP_POLICY); }
PKTGEN_N(translated_source, 2, to_container, lxc_b)
{
	context->ingress_ifindex = NIC;
	make_udp(frame, v6, WORLD, POD_B, 5000, 53);
}
CHECK_N(translated_source, 2) { assert_eq(result->action, TC_ACT_OK); }

/* Nor is the other way of pretending of use: a mark is no proof that the node made it. */
SETUP(false_host_denied)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
}
PKTGEN(false_host_denied, to_container, lxc_b)
{
	context->ingress_ifindex = NIC;
	make_udp(frame, v6, ROUTER, POD_B, 5000, 53);
}
CHECK(false_host_denied) { assert_dropped(DROP_POLICY); }
PKTGEN_N(false_host_denied, 2, to_container, lxc_b)
{
	make_udp(frame, v6, ROUTER, POD_B, 5000, 53);
}
CHECK_N(false_host_denied, 2) { assert_eq(result->action, TC_ACT_OK); }
/* Also when the flow is there already, under the name of the node. */
PKTGEN_N(false_host_denied, 3, to_container, lxc_b)
{
	context->ingress_ifindex = NIC;
	make_udp(frame, v6, ROUTER, POD_B, 5000, 53);
}
CHECK_N(false_host_denied, 3) { assert_dropped(DROP_POLICY); }

/* Pods of other nodes come through the overlay. By another way they are forged. */
#define FORGED(name, source)                                                            \
	SETUP(name) { add_cluster(); }                                                  \
	PKTGEN(name, to_container, lxc_b)                                               \
	{                                                                               \
		context->ingress_ifindex = NIC;                                         \
		make_udp(frame, v6, source, POD_B, 5000, 53);                           \
	}                                                                               \
	CHECK(name) { assert_dropped(DROP_INVALID_SIP); }                               \
	/* With native routing they do come so. */                                      \
	PKTGEN_N(name, 2, to_container, lxc_b)                                          \
	{                                                                               \
		context->variant = VARIANT_NATIVE;                                      \
		context->ingress_ifindex = NIC;                                         \
		make_udp(frame, v6, source, POD_B, 5000, 53);                           \
	}                                                                               \
	CHECK_N(name, 2) { assert_eq(result->action, TC_ACT_OK); }

FORGED(forged_remote_pod, POD_REMOTE)
FORGED(forged_local_pod, POD_A)

/* ---- to_container: for whom ---- */

SETUP(not_for_this_pod) { add_cluster(); }
PKTGEN(not_for_this_pod, to_container, lxc_b) { make_udp(frame, v6, ROUTER, POD_A, 5000, 53); }
CHECK(not_for_this_pod) { assert_dropped(DROP_NO_LXC); }
PKTGEN_N(not_for_this_pod, 2, to_container, lxc_b)
{
	make_udp(frame, v6, ROUTER, BROADCAST, 5000, 53);
}
CHECK_N(not_for_this_pod, 2) { assert_dropped(DROP_NO_LXC); }
PKTGEN_N(not_for_this_pod, 3, to_container, lxc_b)
{
	put_ethernet(frame, 0x88cc);
	put_payload(frame, 46);
}
CHECK_N(not_for_this_pod, 3) { assert_dropped(DROP_UNKNOWN_L3); }
