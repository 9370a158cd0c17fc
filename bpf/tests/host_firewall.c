/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node under a policy: connections to it and from it, on its device and with its pods. */
#include "tests/lib/host_firewall.h"

#define SYN_ACK (TCP_SYN | TCP_ACK)

#define FROM_WORLD(name, n, dport, flags)                                       \
	PKTGEN_N(name, n, from_netdev, nic)                                     \
	{                                                                       \
		make_tcp(frame, v6, WORLD, NODE, 1000, dport, flags);           \
	}
#define TO_WORLD(name, n, sport, flags)                                         \
	PKTGEN_N(name, n, to_netdev, nic)                                       \
	{                                                                       \
		make_tcp(frame, v6, NODE, WORLD, sport, 1000, flags);           \
	}

/* ---- off ---- */

SETUP(off)
{
	add_cluster();
	add_subject(SUBJECT_HOST);
	enforce(SUBJECT_HOST, DIR_INGRESS);
	enforce(SUBJECT_HOST, DIR_EGRESS);
}
FROM_WORLD(off, 1, 80, TCP_SYN)
CHECK(off)
{
	assert_passed();
	test_assert(!flow_of(v6, IPPROTO_TCP, WORLD, 1000, NODE, 80));
}
TO_WORLD(off, 2, 80, SYN_ACK)
CHECK_N(off, 2) { assert_passed(); }
PKTGEN_N(off, 3, from_container, lxc_a) { make_tcp(frame, v6, POD_A, NODE, 1000, 80, TCP_SYN); }
CHECK_N(off, 3) { assert_to_stack(ID_A); }

/* ---- ingress ---- */

SETUP(denied) { enforce_node(DIR_INGRESS); }
FROM_WORLD(denied, 1, 80, TCP_SYN)
CHECK(denied)
{
	const struct event *e = test_event(0);

	assert_node_denies(DIR_INGRESS);
	test_require(e);
	assert_eq(e->src_identity, ID_WORLD);
	assert_eq(e->dst_identity, ID_HOST);
	assert_eq(e->policy_revision, 7);
	test_assert(!flow_of(v6, IPPROTO_TCP, WORLD, 1000, NODE, 80));
}
/* At its other address too. */
PKTGEN_N(denied, 2, from_netdev, nic) { make_tcp(frame, v6, WORLD, ROUTER, 1000, 80, TCP_SYN); }
CHECK_N(denied, 2) { assert_node_denies(DIR_INGRESS); }

SETUP(allowed)
{
	enforce_node(DIR_INGRESS);
	enforce(SUBJECT_HOST, DIR_EGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_WORLD, IPPROTO_TCP, 80, .cookie = 5));
}
FROM_WORLD(allowed, 1, 80, TCP_SYN)
CHECK(allowed)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, WORLD, 1000, NODE, 80);
	const struct event *e = test_event(0);

	assert_passed();
	assert_eq(counted(REASON_FORWARDED, DIR_INGRESS), 1);
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 1);
	assert_eq(ct->side[DIR_INGRESS].owner, ENDPOINT_HOST);
	assert_eq(ct->side[DIR_INGRESS].slot, HOST_SLOT);
	assert_eq(ct->side[DIR_INGRESS].identity, ID_WORLD);
	assert_eq(ct->side[DIR_EGRESS].owner, 0);
	test_require(e);
	assert_eq(e->kind, EVENT_VERDICT);
	assert_eq(e->verdict, VERDICT_ALLOW);
	assert_eq(e->rule_cookie, 5);
}
/* The answer needs no rule of the other direction. */
TO_WORLD(allowed, 2, 80, SYN_ACK)
CHECK_N(allowed, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, WORLD, 1000, NODE, 80);

	assert_passed();
	assert_eq(result->events, 0);
	test_require(ct);
	assert_eq(ct->packets[CT_REPLY], 1);
}
FROM_WORLD(allowed, 3, 80, TCP_ACK)
CHECK_N(allowed, 3)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, WORLD, 1000, NODE, 80);

	assert_passed();
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 2);
}
FROM_WORLD(allowed, 4, 81, TCP_SYN)
CHECK_N(allowed, 4) { assert_node_denies(DIR_INGRESS); }
/* A connection that ends may be made again. */
FROM_WORLD(allowed, 5, 80, TCP_RST)
CHECK_N(allowed, 5) { assert_passed(); }
FROM_WORLD(allowed, 6, 80, TCP_SYN)
CHECK_N(allowed, 6)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, WORLD, 1000, NODE, 80);

	assert_passed();
	test_require(ct);
	assert_eq(ct->packets[CT_ORIGINAL], 1);
}

/* By who is at the address: another node is no world, and this node's address no node. */
SETUP(by_identity)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_REMOTE_NODE));
}
PKTGEN(by_identity, from_netdev, nic)
{
	make_tcp(frame, v6, NODE_OTHER, NODE, 1000, 80, TCP_SYN);
}
CHECK(by_identity) { assert_passed(); }
FROM_WORLD(by_identity, 2, 80, TCP_SYN)
CHECK_N(by_identity, 2) { assert_node_denies(DIR_INGRESS); }
PKTGEN_N(by_identity, 3, from_netdev, nic)
{
	make_tcp(frame, v6, ROUTER, NODE, 1000, 80, TCP_SYN);
}
CHECK_N(by_identity, 3) { assert_node_denies(DIR_INGRESS); }
/* Pods of other nodes come through the overlay. */
PKTGEN_N(by_identity, 4, from_netdev, nic)
{
	make_tcp(frame, v6, POD_REMOTE, NODE, 1000, 80, TCP_SYN);
}
CHECK_N(by_identity, 4) { assert_dropped(DROP_INVALID_SIP); }

/* With native routing they come as they are. */
SETUP(native)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_POD_REMOTE));
}
PKTGEN(native, from_netdev, nic)
{
	context->variant = VARIANT_NATIVE;
	make_tcp(frame, v6, POD_REMOTE, NODE, 1000, 80, TCP_SYN);
}
CHECK(native) { assert_passed(); }

/* ---- egress ---- */

SETUP(sends)
{
	enforce_node(DIR_EGRESS);
	enforce(SUBJECT_HOST, DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_EGRESS, RULE(ID_WORLD, IPPROTO_TCP, 443));
}
PKTGEN(sends, to_netdev, nic) { make_tcp(frame, v6, NODE, WORLD, 1000, 443, TCP_SYN); }
CHECK(sends)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, NODE, 1000, WORLD, 443);

	assert_passed();
	assert_eq(counted(REASON_FORWARDED, DIR_EGRESS), 1);
	test_require(ct);
	assert_eq(ct->side[DIR_EGRESS].owner, ENDPOINT_HOST);
}
PKTGEN_N(sends, 2, from_netdev, nic) { make_tcp(frame, v6, WORLD, NODE, 443, 1000, SYN_ACK); }
CHECK_N(sends, 2) { assert_passed(); }
PKTGEN_N(sends, 3, to_netdev, nic) { make_tcp(frame, v6, NODE, WORLD, 1000, 80, TCP_SYN); }
CHECK_N(sends, 3)
{
	const struct event *e = test_event(0);

	assert_node_denies(DIR_EGRESS);
	test_require(e);
	assert_eq(e->src_identity, ID_HOST);
	assert_eq(e->dst_identity, ID_WORLD);
}
/* The port of the peer does not let it in. */
PKTGEN_N(sends, 4, from_netdev, nic) { make_tcp(frame, v6, WORLD, NODE, 443, 1001, SYN_ACK); }
CHECK_N(sends, 4) { assert_node_denies(DIR_INGRESS); }

/* What it forwards for others is theirs, unless it goes by the node's address. */
SETUP(forwards) { enforce_node(DIR_EGRESS); }
PKTGEN(forwards, to_netdev, nic)
{
	context->ingress_ifindex = CONFIG(lxc_a_ifindex);
	context->variant = VARIANT_NO_MASQUERADE;
	make_tcp(frame, v6, POD_A, WORLD, 1000, 80, TCP_SYN);
}
CHECK(forwards) { assert_passed(); }
PKTGEN_N(forwards, 2, to_netdev, nic)
{
	context->ingress_ifindex = CONFIG(nic_ifindex);
	make_tcp(frame, v6, WORLD_CIDR, WORLD, 1000, 80, TCP_SYN);
}
CHECK_N(forwards, 2) { assert_passed(); }
PKTGEN_N(forwards, 3, to_netdev, nic)
{
	context->ingress_ifindex = CONFIG(lxc_a_ifindex);
	make_tcp(frame, v6, NODE, WORLD, 1000, 80, TCP_SYN);
}
CHECK_N(forwards, 3) { assert_node_denies(DIR_EGRESS); }
/* The overlay's packets by their mark. */
PKTGEN_N(forwards, 4, to_netdev, nic)
{
	context->mark = 0x0E00;
	make_udp(frame, v6, NODE, NODE_OTHER, 1000, 4789);
}
CHECK_N(forwards, 4) { assert_passed(); }

/* ---- a new policy ---- */

SETUP(again)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_WORLD, IPPROTO_TCP, 80));
}
FROM_WORLD(again, 1, 80, TCP_SYN)
TO_WORLD(again, 2, 80, SYN_ACK)
CHECK_N(again, 2) { assert_passed(); }
/* What was judged under the present policy is not judged again for a change elsewhere. */
PKTGEN_N(again, 3, from_netdev, nic)
{
	next_generation();
	make_tcp(frame, v6, WORLD, NODE, 1000, 80, TCP_ACK);
}
CHECK_N(again, 3)
{
	const struct policy_value *entry =
		rule_entry(SUBJECT_HOST, DIR_INGRESS, RULE(ID_WORLD, IPPROTO_TCP, 80));

	assert_passed();
	test_require(entry);
	assert_eq(entry->packets, 1);
}
PKTGEN_N(again, 4, from_netdev, nic)
{
	next_epoch(SUBJECT_HOST);
	make_tcp(frame, v6, WORLD, NODE, 1000, 80, TCP_ACK);
}
CHECK_N(again, 4)
{
	const struct policy_value *entry =
		rule_entry(SUBJECT_HOST, DIR_INGRESS, RULE(ID_WORLD, IPPROTO_TCP, 80));

	assert_passed();
	test_require(entry);
	assert_eq(entry->packets, 2);
}
/* Established or not, in either direction. */
PKTGEN_N(again, 5, from_netdev, nic)
{
	struct subject *row = subject_of(SUBJECT_HOST);

	if (row)
		row->instance++;
	next_epoch(SUBJECT_HOST);
	make_tcp(frame, v6, WORLD, NODE, 1000, 80, TCP_ACK);
}
CHECK_N(again, 5) { assert_node_denies(DIR_INGRESS); }
TO_WORLD(again, 6, 80, TCP_ACK)
CHECK_N(again, 6) { assert_node_denies(DIR_INGRESS); }

/* Switched off and on, what it was judged by before counts no more than its policy says. */
SETUP(on_again) { enforce_node(DIR_INGRESS); }
PKTGEN(on_again, to_netdev, nic) { make_tcp(frame, v6, NODE, WORLD, 1000, 443, TCP_SYN); }
PKTGEN_N(on_again, 2, from_netdev, nic)
{
	struct endpoint *host = endpoint_row(HOST_SLOT);

	if (host)
		host->subject = 0;
	next_generation();
	make_tcp(frame, v6, WORLD, NODE, 1000, 80, TCP_SYN);
}
CHECK_N(on_again, 2) { assert_passed(); }
PKTGEN_N(on_again, 3, from_netdev, nic)
{
	struct endpoint *host = endpoint_row(HOST_SLOT);

	if (host)
		host->subject = SUBJECT_HOST;
	next_generation();
	make_tcp(frame, v6, WORLD, NODE, 443, 1000, SYN_ACK);
}
CHECK_N(on_again, 3) { assert_passed(); }
FROM_WORLD(on_again, 4, 80, TCP_SYN)
CHECK_N(on_again, 4) { assert_node_denies(DIR_INGRESS); }

/* A subject that is not there yet passes nothing but what is failsafe. */
SETUP(not_ready)
{
	add_cluster_with_policy();
	remove_subject(SUBJECT_HOST);
	add_failsafe(DIR_INGRESS, IPPROTO_TCP, 22);
}
FROM_WORLD(not_ready, 1, 80, TCP_SYN)
CHECK(not_ready) { assert_dropped(DROP_POLICY_NOT_READY); }
FROM_WORLD(not_ready, 2, 22, TCP_SYN)
CHECK_N(not_ready, 2) { assert_passed(); }
TO_WORLD(not_ready, 3, 22, SYN_ACK)
CHECK_N(not_ready, 3) { assert_passed(); }
PKTGEN_N(not_ready, 4, to_netdev, nic) { make_echo(frame, v6, NODE, WORLD, 7); }
CHECK_N(not_ready, 4) { assert_dropped(DROP_POLICY_NOT_READY); }

SETUP(audited)
{
	enforce_node(DIR_INGRESS);
	audit(SUBJECT_HOST, DIR_INGRESS);
}
FROM_WORLD(audited, 1, 80, TCP_SYN)
CHECK(audited)
{
	const struct event *e = test_event(0);

	assert_passed();
	test_require(e);
	assert_eq(e->verdict, VERDICT_AUDIT);
	assert_eq(e->endpoint_id, ENDPOINT_HOST);
}

/* ---- failsafe ---- */

SETUP(failsafe_in)
{
	enforce_node(DIR_INGRESS);
	enforce(SUBJECT_HOST, DIR_EGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(.deny = true));
	add_rule(SUBJECT_HOST, DIR_EGRESS, RULE(.deny = true));
	add_failsafe(DIR_INGRESS, IPPROTO_TCP, 22);
}
FROM_WORLD(failsafe_in, 1, 22, TCP_SYN)
CHECK(failsafe_in)
{
	const struct event *e = test_event(0);

	assert_passed();
	test_require(e);
	assert_eq(e->kind, EVENT_VERDICT);
	assert_eq(e->verdict, VERDICT_ALLOW);
	assert_eq(e->rule_cookie, 0);
}
TO_WORLD(failsafe_in, 2, 22, SYN_ACK)
CHECK_N(failsafe_in, 2)
{
	assert_passed();
	assert_eq(result->events, 0);
}
FROM_WORLD(failsafe_in, 3, 22, TCP_ACK)
CHECK_N(failsafe_in, 3) { assert_passed(); }
/* Under a new policy too. */
PKTGEN_N(failsafe_in, 4, from_netdev, nic)
{
	next_epoch(SUBJECT_HOST);
	make_tcp(frame, v6, WORLD, NODE, 1000, 22, TCP_ACK);
}
CHECK_N(failsafe_in, 4) { assert_passed(); }
/* It is a port of the node's, of that protocol, in that direction. */
PKTGEN_N(failsafe_in, 5, to_netdev, nic) { make_tcp(frame, v6, NODE, WORLD, 1001, 22, TCP_SYN); }
CHECK_N(failsafe_in, 5) { assert_dropped(DROP_POLICY_DENY); }
PKTGEN_N(failsafe_in, 6, from_netdev, nic) { make_udp(frame, v6, WORLD, NODE, 1000, 22); }
CHECK_N(failsafe_in, 6) { assert_dropped(DROP_POLICY_DENY); }
PKTGEN_N(failsafe_in, 7, from_netdev, nic) { make_tcp(frame, v6, WORLD, NODE, 22, 80, TCP_SYN); }
CHECK_N(failsafe_in, 7) { assert_dropped(DROP_POLICY_DENY); }

SETUP(failsafe_out)
{
	enforce_node(DIR_INGRESS);
	enforce(SUBJECT_HOST, DIR_EGRESS);
	add_failsafe(DIR_EGRESS, IPPROTO_UDP, 53);
}
PKTGEN(failsafe_out, to_netdev, nic) { make_udp(frame, v6, NODE, WORLD, 1000, 53); }
CHECK(failsafe_out) { assert_passed(); }
PKTGEN_N(failsafe_out, 2, from_netdev, nic) { make_udp(frame, v6, WORLD, NODE, 53, 1000); }
CHECK_N(failsafe_out, 2) { assert_passed(); }
PKTGEN_N(failsafe_out, 3, from_netdev, nic) { make_udp(frame, v6, WORLD, NODE, 1000, 53); }
CHECK_N(failsafe_out, 3) { assert_node_denies(DIR_INGRESS); }
/* A port that is failsafe no longer closes with the next change. */
PKTGEN_N(failsafe_out, 4, from_netdev, nic)
{
	struct failsafe_key key = { DIR_EGRESS, IPPROTO_UDP, bpf_htons(53) };

	bpf_map_delete_elem(&failsafe, &key);
	next_generation();
	make_udp(frame, v6, WORLD, NODE, 53, 1000);
}
CHECK_N(failsafe_out, 4) { assert_node_denies(DIR_EGRESS); }

/* ---- pods ---- */

/* From a pod: by way of fimbria_net, with the sender in the mark. */
SETUP(pod_to_node)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_A, IPPROTO_TCP, 10250));
}
PKTGEN(pod_to_node, from_container, lxc_a)
{
	make_tcp(frame, v6, POD_A, NODE, 1000, 10250, TCP_SYN);
}
CHECK(pod_to_node)
{
	const __u8 mac[ETH_ALEN] = FIMBRIA_HOST_MAC;

	assert_forward(FORWARD_REDIRECT, DEVICE_net);
	assert_eq(result->mark, mark_of_identity(ID_A));
	assert_eq(ethernet_of(frame)->h_dest[4], mac[4]);
	assert_eq(ethernet_of(frame)->h_dest[5], mac[5]);
	test_assert(frames_equal_from(frame, sent, frame->l3));
}
PKTGEN_N(pod_to_node, 2, to_host, host)
{
	context->mark = mark_of_identity(ID_A);
	make_tcp(frame, v6, POD_A, NODE, 1000, 10250, TCP_SYN);
}
CHECK_N(pod_to_node, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, POD_A, 1000, NODE, 10250);

	assert_passed();
	/* One flow, judged and told of at both ends. */
	assert_eq(result->events, 1);
	test_require(ct);
	assert_eq(ct->side[DIR_EGRESS].owner, ENDPOINT_A);
	assert_eq(ct->side[DIR_INGRESS].owner, ENDPOINT_HOST);
}
PKTGEN_N(pod_to_node, 3, from_host, host)
{
	make_tcp(frame, v6, NODE, POD_A, 10250, 1000, SYN_ACK);
}
CHECK_N(pod_to_node, 3) { assert_forward(FORWARD_REDIRECT, DEVICE_lxc_a); }
PKTGEN_N(pod_to_node, 4, to_host, host)
{
	context->mark = mark_of_identity(ID_B);
	make_tcp(frame, v6, POD_B, NODE, 1000, 10250, TCP_SYN);
}
CHECK_N(pod_to_node, 4) { assert_node_denies(DIR_INGRESS); }
/* A pod of another node, which the overlay delivered. */
PKTGEN_N(pod_to_node, 5, from_overlay, vxlan)
{
	context->flags |= CONTEXT_TUNNEL;
	context->tunnel_id = ID_POD_REMOTE;
	context->tunnel_peer = address4(NODE_OTHER);
	make_tcp(frame, v6, POD_REMOTE, ROUTER, 1000, 80, TCP_SYN);
}
CHECK_N(pod_to_node, 5)
{
	assert_forward(FORWARD_REDIRECT, DEVICE_net);
	assert_eq(result->mark, mark_of_identity(ID_POD_REMOTE));
}
PKTGEN_N(pod_to_node, 6, to_host, host)
{
	context->mark = mark_of_identity(ID_POD_REMOTE);
	make_tcp(frame, v6, POD_REMOTE, ROUTER, 1000, 80, TCP_SYN);
}
CHECK_N(pod_to_node, 6) { assert_node_denies(DIR_INGRESS); }

SETUP(node_to_pod)
{
	enforce_node(DIR_EGRESS);
	enforce(SUBJECT_HOST, DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_EGRESS, RULE(ID_B, IPPROTO_TCP, 80));
}
PKTGEN(node_to_pod, from_host, host)
{
	make_tcp(frame, v6, ROUTER, POD_B, 1000, 80, TCP_SYN);
}
CHECK(node_to_pod) { assert_forward(FORWARD_REDIRECT, DEVICE_lxc_b); }
PKTGEN_N(node_to_pod, 2, to_container, lxc_b)
{
	make_tcp(frame, v6, ROUTER, POD_B, 1000, 80, TCP_SYN);
}
CHECK_N(node_to_pod, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, ROUTER, 1000, POD_B, 80);

	assert_passed();
	test_require(ct);
	assert_eq(ct->side[DIR_EGRESS].owner, ENDPOINT_HOST);
	assert_eq(ct->side[DIR_INGRESS].owner, ENDPOINT_B);
}
PKTGEN_N(node_to_pod, 3, to_host, host)
{
	context->mark = mark_of_identity(ID_B);
	make_tcp(frame, v6, POD_B, ROUTER, 80, 1000, SYN_ACK);
}
CHECK_N(node_to_pod, 3) { assert_passed(); }
PKTGEN_N(node_to_pod, 4, from_host, host)
{
	make_tcp(frame, v6, ROUTER, POD_B, 1000, 81, TCP_SYN);
}
CHECK_N(node_to_pod, 4) { assert_node_denies(DIR_EGRESS); }
PKTGEN_N(node_to_pod, 5, from_host, host)
{
	make_tcp(frame, v6, ROUTER, POD_REMOTE, 1000, 80, TCP_SYN);
}
CHECK_N(node_to_pod, 5) { assert_node_denies(DIR_EGRESS); }
/* What others send to pods by way of the node is not its own. */
PKTGEN_N(node_to_pod, 6, from_host, host)
{
	context->ingress_ifindex = CONFIG(nic_ifindex);
	make_tcp(frame, v6, WORLD, POD_B, 1000, 80, TCP_SYN);
}
CHECK_N(node_to_pod, 6) { assert_forward(FORWARD_REDIRECT, DEVICE_lxc_b); }
