/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* fimbria_host: what the node's stack sends into the pod network, as long as no policy selects the node. */
#include "tests/lib/scenario.h"

#define NIC CONFIG(nic_ifindex)

/* To a pod by its device's egress, where to_container judges; the mark says who sent it. */
#define TO_POD(name, source, from_device, with_mark, who)                               \
	SETUP(name)                                                                     \
	{                                                                               \
		add_cluster();                                                          \
		enforce(SUBJECT_B, DIR_INGRESS);                                        \
	}                                                                               \
	PKTGEN(name, from_host, host)                                                   \
	{                                                                               \
		context->ingress_ifindex = from_device;                                 \
		context->mark = with_mark;                                              \
		make_udp(frame, v6, source, POD_B, 5000, 53);                           \
	}                                                                               \
	CHECK(name)                                                                     \
	{                                                                               \
		const __u8 mac[ETH_ALEN] = POD_B_MAC;                                   \
                                                                                        \
		assert_forward(FORWARD_REDIRECT, DEVICE_lxc_b);                         \
		assert_eq(result->mark, mark_of_identity(who));                         \
		assert_eq(ethernet_of(frame)->h_dest[5], mac[5]);                       \
		test_assert(frames_equal_from(frame, sent, frame->l3));                 \
		/* Nothing is judged here. */                                           \
		test_assert(!flow_of(v6, IPPROTO_UDP, source, 5000, POD_B, 53));        \
	}

TO_POD(from_node, ROUTER, 0, 0, ID_HOST)
TO_POD(from_node_underlay, NODE, 0, 0, ID_HOST)
TO_POD(from_local_pod, POD_A, CONFIG(lxc_a_ifindex), mark_of_identity(ID_A), ID_A)
TO_POD(from_world, WORLD, NIC, 0, ID_WORLD)
TO_POD(from_other_node, NODE_OTHER, NIC, 0, ID_REMOTE_NODE)
/* The node's addresses from outside are the world's. */
TO_POD(from_false_node, NODE, NIC, 0, ID_WORLD)
/* Spent hops are no matter here: the stack has looked at them. */
SETUP(spent) { add_cluster(); }
PKTGEN(spent, from_host, host)
{
	make_udp(frame, v6, ROUTER, POD_B, 5000, 53);
	if (v6)
		ipv6_of(frame)->hop_limit = 1;
	else
		ipv4_of(frame)->ttl = 1;
	finish_checksums(frame);
}
CHECK(spent)
{
	assert_forward(FORWARD_REDIRECT, DEVICE_lxc_b);
	assert_eq(hops_of(frame, v6), 1);
}

SETUP(forged) { add_cluster(); }
PKTGEN(forged, from_host, host)
{
	context->ingress_ifindex = NIC;
	make_udp(frame, v6, POD_REMOTE, POD_B, 5000, 53);
}
CHECK(forged) { assert_dropped(DROP_INVALID_SIP); }
PKTGEN_N(forged, 2, from_host, host)
{
	context->ingress_ifindex = NIC;
	make_udp(frame, v6, POD_A, POD_B, 5000, 53);
}
CHECK_N(forged, 2) { assert_dropped(DROP_INVALID_SIP); }
PKTGEN_N(forged, 3, from_host, host)
{
	context->ingress_ifindex = NIC;
	make_udp(frame, v6, POD_A, POD_REMOTE, 5000, 53);
}
CHECK_N(forged, 3) { assert_dropped(DROP_INVALID_SIP); }

/* To another node's pods through the overlay, as the host. */
SETUP(to_remote) { add_cluster(); }
PKTGEN(to_remote, from_host, host) { make_udp(frame, v6, ROUTER, POD_REMOTE, 5000, 53); }
CHECK(to_remote)
{
	assert_to_tunnel(NODE_OTHER, ID_HOST);
	assert_unchanged();
	assert_eq(counted(REASON_FORWARDED, DIR_EGRESS), 1);
}
PKTGEN_N(to_remote, 2, from_host, host)
{
	make_udp(frame, v6, ROUTER, ROUTER_OTHER, 5000, 53);
}
CHECK_N(to_remote, 2) { assert_to_tunnel(NODE_OTHER, ID_HOST); }

/* Only pod CIDRs are routed here: nobody has another address. */
SETUP(to_nobody) { add_cluster(); }
PKTGEN(to_nobody, from_host, host) { make_udp(frame, v6, ROUTER, POD_FREE, 5000, 53); }
CHECK(to_nobody) { assert_dropped(DROP_NO_LXC); }
PKTGEN_N(to_nobody, 2, from_host, host) { make_udp(frame, v6, ROUTER, WORLD, 5000, 53); }
CHECK_N(to_nobody, 2) { assert_dropped(DROP_NO_LXC); }

SETUP4(not_ip) { add_cluster(); }
PKTGEN4(not_ip, from_host, host)
{
	put_ethernet(frame, 0x88cc);
	put_payload(frame, 46);
}
CHECK4(not_ip) { assert_dropped(DROP_UNKNOWN_L3); }

SETUP(cut) { add_cluster(); }
PKTGEN(cut, from_host, host)
{
	make_udp(frame, v6, ROUTER, POD_B, 5000, 53);
	context->flags |= CONTEXT_LENGTH;
	context->length = frame->l4 - 1;
}
CHECK(cut) { assert_dropped(DROP_INVALID); }

/* The whole way: the node probes a pod that lets nobody in, and gets its answer. */
SETUP(probe)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
	enforce(SUBJECT_B, DIR_EGRESS);
	add_rule(SUBJECT_B, DIR_INGRESS, RULE(ID_HOST, .deny = true));
}
PKTGEN(probe, from_host, host) { make_tcp(frame, v6, ROUTER, POD_B, 1000, 80, TCP_SYN); }
CHECK(probe) { assert_forward(FORWARD_REDIRECT, DEVICE_lxc_b); }
PKTGEN_N(probe, 2, to_container, lxc_b)
{
	context->mark = mark_of_identity(ID_HOST);
	make_tcp(frame, v6, ROUTER, POD_B, 1000, 80, TCP_SYN);
}
CHECK_N(probe, 2) { assert_eq(result->action, TC_ACT_OK); }
PKTGEN_N(probe, 3, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, ROUTER, 80, 1000, TCP_SYN | TCP_ACK);
}
CHECK_N(probe, 3)
{
	assert_to_stack(ID_B);
	assert_unchanged();
}
/* What the pod starts towards it is under the pod's policy. */
PKTGEN_N(probe, 4, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, ROUTER, 80, 1001, TCP_SYN);
}
CHECK_N(probe, 4) { assert_dropped(DROP_POLICY); }

/* A policy that changes under it does not cut the node off. */
SETUP(probe_goes_on) { add_cluster(); }
PKTGEN(probe_goes_on, to_container, lxc_b)
{
	make_tcp(frame, v6, ROUTER, POD_B, 1000, 80, TCP_SYN);
}
PKTGEN_N(probe_goes_on, 2, to_container, lxc_b)
{
	enforce(SUBJECT_B, DIR_INGRESS);
	enforce(SUBJECT_B, DIR_EGRESS);
	next_epoch(SUBJECT_B);
	make_tcp(frame, v6, ROUTER, POD_B, 1000, 80, TCP_ACK);
}
CHECK_N(probe_goes_on, 2) { assert_eq(result->action, TC_ACT_OK); }
PKTGEN_N(probe_goes_on, 3, from_container, lxc_b)
{
	make_tcp(frame, v6, POD_B, ROUTER, 80, 1000, TCP_ACK);
}
CHECK_N(probe_goes_on, 3) { assert_to_stack(ID_B); }

/* ---- to_host: nothing to say until a policy does ---- */

SETUP(to_host) { add_cluster(); }
PKTGEN(to_host, to_host, host)
{
	context->mark = mark_of_identity(ID_A);
	make_udp(frame, v6, POD_A, NODE, 5000, 53);
}
CHECK(to_host)
{
	assert_eq(result->action, TC_ACT_OK);
	assert_unchanged();
}
PKTGEN_N(to_host, 2, to_host, host)
{
	make_udp(frame, v6, POD_A, NODE, 5000, 53);
	context->flags |= CONTEXT_LENGTH;
	context->length = 20;
}
CHECK_N(to_host, 2) { assert_eq(result->action, TC_ACT_OK); }
