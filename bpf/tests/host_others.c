/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node under a policy: what is no connection, what is for many, what cannot be read. */
#include "tests/lib/host_firewall.h"

#define PROTOCOL_ESP 50
#define TYPE4_TIMESTAMP 13
#define TYPE6_MLD2_REPORT 143
#define TYPE6_NODE_INFORMATION 139

/* ---- ICMP ---- */

SETUP(ping)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_REMOTE_NODE));
}
PKTGEN(ping, to_netdev, nic) { make_echo(frame, v6, NODE, WORLD, 7); }
CHECK(ping) { assert_passed(); }
PKTGEN_N(ping, 2, from_netdev, nic) { make_echo_reply(frame, v6, WORLD, NODE, 7); }
CHECK_N(ping, 2) { assert_passed(); }
PKTGEN_N(ping, 3, from_netdev, nic) { make_echo_reply(frame, v6, WORLD, NODE, 8); }
CHECK_N(ping, 3) { assert_node_denies(DIR_INGRESS); }
PKTGEN_N(ping, 4, from_netdev, nic) { make_echo(frame, v6, WORLD, NODE, 7); }
CHECK_N(ping, 4) { assert_node_denies(DIR_INGRESS); }
PKTGEN_N(ping, 5, from_netdev, nic) { make_echo(frame, v6, NODE_OTHER, NODE, 9); }
CHECK_N(ping, 5) { assert_passed(); }

/* An answer whose question went by where nobody looks passes as far as its own direction is open. */
SETUP(answer_alone) { enforce_node(DIR_INGRESS); }
PKTGEN(answer_alone, to_netdev, nic) { make_echo_reply(frame, v6, NODE, WORLD, 7); }
CHECK(answer_alone)
{
	assert_passed();
	test_assert(!flow_of(v6, echo_protocol(v6), WORLD, 7, NODE, 7));
}

static __always_inline void put_unreachable(struct frame *f, const bool v6, enum host reporter,
					    enum host to)
{
	put_icmp_error(f, v6, reporter, to, v6 ? TYPE6_UNREACHABLE : TYPE4_UNREACHABLE,
		       v6 ? 4 : 3, 0);
}

/* Of what somebody sent from 5000 to 53. */
static __always_inline void quote_udp(struct frame *f, const bool v6, enum host source,
				      enum host destination)
{
	put_ip(f, v6, source, destination, IPPROTO_UDP);
	put_udp(f, 5000, 53);
	finish(f);
}

SETUP(error_comes)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_REMOTE_NODE));
}
PKTGEN(error_comes, to_netdev, nic) { make_udp(frame, v6, NODE, WORLD, 5000, 53); }
/* From whatever router. */
PKTGEN_N(error_comes, 2, from_netdev, nic)
{
	put_unreachable(frame, v6, WORLD_CIDR, NODE);
	quote_udp(frame, v6, NODE, WORLD);
}
CHECK_N(error_comes, 2)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, NODE, 5000, WORLD, 53);

	assert_passed();
	test_require(ct);
	assert_eq(ct->packets[CT_REPLY], 0);
}
/* About nothing that is known: by itself, as what it is, from who sends it. */
PKTGEN_N(error_comes, 3, from_netdev, nic)
{
	put_unreachable(frame, v6, WORLD_CIDR, NODE);
	quote_udp(frame, v6, NODE, NODE_OTHER);
}
CHECK_N(error_comes, 3) { assert_node_denies(DIR_INGRESS); }
PKTGEN_N(error_comes, 4, from_netdev, nic)
{
	put_unreachable(frame, v6, NODE_OTHER, NODE);
	quote_udp(frame, v6, NODE, WORLD_CIDR);
}
CHECK_N(error_comes, 4) { assert_passed(); }

/* TCP is no exception, if the node has no such connection. */
SETUP(error_of_no_connection)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_REMOTE_NODE));
}
static __always_inline void make_tcp_error(struct frame *f, const bool v6, enum host reporter,
					   enum host about)
{
	put_unreachable(f, v6, reporter, NODE);
	put_ip(f, v6, NODE, about, IPPROTO_TCP);
	put_tcp(f, 5000, 443, TCP_SYN);
	finish(f);
}
PKTGEN(error_of_no_connection, from_netdev, nic) { make_tcp_error(frame, v6, NODE_OTHER, WORLD); }
CHECK(error_of_no_connection) { assert_passed(); }
PKTGEN_N(error_of_no_connection, 2, from_netdev, nic) { make_tcp_error(frame, v6, WORLD, NODE_OTHER); }
CHECK_N(error_of_no_connection, 2) { assert_node_denies(DIR_INGRESS); }

/* What the node says as a router, of its pods' flows, is no traffic of its own. */
SETUP(error_goes)
{
	enforce_node(DIR_EGRESS);
}
PKTGEN(error_goes, from_container, lxc_a) { make_udp(frame, v6, POD_A, WORLD, 53, 5000); }
CHECK(error_goes) { assert_to_network(); }
PKTGEN_N(error_goes, 2, to_netdev, nic)
{
	put_unreachable(frame, v6, NODE, WORLD);
	quote_udp(frame, v6, WORLD, POD_A);
}
CHECK_N(error_goes, 2) { assert_passed(); }
PKTGEN_N(error_goes, 3, to_netdev, nic)
{
	put_unreachable(frame, v6, NODE, WORLD);
	quote_udp(frame, v6, WORLD, POD_B);
}
CHECK_N(error_goes, 3) { assert_node_denies(DIR_EGRESS); }
PKTGEN_N(error_goes, 4, to_netdev, nic)
{
	put_unreachable(frame, v6, NODE, WORLD);
	quote_udp(frame, v6, WORLD, NODE);
}
CHECK_N(error_goes, 4) { assert_node_denies(DIR_EGRESS); }

/* The refusal of what an allowed peer sent is about his flow. */
SETUP(refusal)
{
	enforce_node(DIR_EGRESS);
	enforce(SUBJECT_HOST, DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_WORLD, IPPROTO_UDP, 53));
}
PKTGEN(refusal, from_netdev, nic) { make_udp(frame, v6, WORLD, NODE, 5000, 53); }
CHECK(refusal) { assert_passed(); }
PKTGEN_N(refusal, 2, to_netdev, nic)
{
	put_unreachable(frame, v6, NODE, WORLD);
	quote_udp(frame, v6, WORLD, NODE);
}
CHECK_N(refusal, 2) { assert_passed(); }

/* ---- neighbours ---- */

SETUP6(discovery)
{
	enforce_node(DIR_INGRESS);
	enforce(SUBJECT_HOST, DIR_EGRESS);
}
PKTGEN6(discovery, from_netdev, nic) { make_solicitation(frame, NODE_OTHER, NODE, NODE, false); }
CHECK6(discovery) { assert_passed(); }
PKTGEN6_N(discovery, 2, to_netdev, nic)
{
	make_icmp(frame, v6, NODE, NODE_OTHER, TYPE6_NEIGHBOUR_ADVERTISEMENT, 0, 0);
}
CHECK6_N(discovery, 2) { assert_passed(); }
/* Whom a switch does not know to listen it does not ask. */
PKTGEN6_N(discovery, 3, to_netdev, nic)
{
	put_ethernet(frame, ETH_P_IPV6);
	put_ipv6(frame, NODE, BROADCAST, EXT_HOP_BY_HOP);
	put_extension(frame, IPPROTO_ICMPV6, 1);
	put_icmp(frame, v6, TYPE6_MLD2_REPORT, 0, 0);
	finish(frame);
}
CHECK6_N(discovery, 3) { assert_passed(); }

SETUP4(arp)
{
	enforce_node(DIR_INGRESS);
	enforce(SUBJECT_HOST, DIR_EGRESS);
}
PKTGEN4(arp, from_netdev, nic) { make_arp(frame, 1, NODE_OTHER, NODE); }
CHECK4(arp) { assert_passed(); }
PKTGEN4_N(arp, 2, to_netdev, nic) { make_arp(frame, 2, NODE, NODE_OTHER); }
CHECK4_N(arp, 2) { assert_passed(); }

/* ---- other protocols ---- */

static __always_inline void make_esp(struct frame *f, const bool v6, enum host source,
				     enum host destination)
{
	put_ethernet(f, v6 ? ETH_P_IPV6 : ETH_P_IP);
	put_ip(f, v6, source, destination, PROTOCOL_ESP);
	put_no_transport(f);
	put_payload(f, 40);
	finish(f);
}

SETUP(esp)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_REMOTE_NODE));
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_WORLD, IPPROTO_TCP));
}
PKTGEN(esp, from_netdev, nic) { make_esp(frame, v6, NODE_OTHER, NODE); }
CHECK(esp) { assert_passed(); }
PKTGEN_N(esp, 2, from_netdev, nic) { make_esp(frame, v6, WORLD, NODE); }
CHECK_N(esp, 2) { assert_node_denies(DIR_INGRESS); }
/* The other direction is open. */
PKTGEN_N(esp, 3, to_netdev, nic) { make_esp(frame, v6, NODE, WORLD); }
CHECK_N(esp, 3) { assert_passed(); }
/* It makes no flow: what comes back is judged as what comes. */
PKTGEN_N(esp, 4, from_netdev, nic) { make_esp(frame, v6, WORLD, NODE); }
CHECK_N(esp, 4) { assert_node_denies(DIR_INGRESS); }

/* A deny of everything from somebody is one of every protocol. */
SETUP(esp_denied)
{
	add_cluster_with_policy();
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_WORLD, .deny = true));
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(0));
}
PKTGEN(esp_denied, from_netdev, nic) { make_esp(frame, v6, WORLD, NODE); }
CHECK(esp_denied) { assert_dropped(DROP_POLICY_DENY); }
PKTGEN_N(esp_denied, 2, from_netdev, nic) { make_esp(frame, v6, NODE_OTHER, NODE); }
CHECK_N(esp_denied, 2) { assert_passed(); }

SETUP(other_icmp)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_REMOTE_NODE));
}
PKTGEN(other_icmp, from_netdev, nic)
{
	make_icmp(frame, v6, WORLD, NODE, v6 ? TYPE6_NODE_INFORMATION : TYPE4_TIMESTAMP, 0, 0);
}
CHECK(other_icmp) { assert_node_denies(DIR_INGRESS); }
PKTGEN_N(other_icmp, 2, from_netdev, nic)
{
	make_icmp(frame, v6, NODE_OTHER, NODE, v6 ? TYPE6_NODE_INFORMATION : TYPE4_TIMESTAMP, 0, 0);
}
CHECK_N(other_icmp, 2) { assert_passed(); }

/* ---- what cannot be read ---- */

/* Of an open direction it is the stack's to refuse. */
SETUP(cut_open) { enforce_node(DIR_EGRESS); }
PKTGEN(cut_open, from_netdev, nic)
{
	make_tcp(frame, v6, WORLD, NODE, 1000, 80, TCP_SYN);
	tcp_of(frame)->doff = 4;
}
CHECK(cut_open) { assert_passed(); }

SETUP(cut)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(0));
}
PKTGEN(cut, from_netdev, nic)
{
	make_tcp(frame, v6, WORLD, NODE, 1000, 80, TCP_SYN);
	tcp_of(frame)->doff = 4;
}
CHECK(cut) { assert_dropped(DROP_CT_INVALID_HDR); }

/* Fragments follow their first one. */
SETUP(fragments)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(ID_WORLD, IPPROTO_UDP, 53));
}
static __always_inline void make_later_fragment(struct frame *f, const bool v6, __u32 id)
{
	put_ip_fragment(f, v6, WORLD, NODE, IPPROTO_UDP, 100, id);
	put_payload(f, 40);
	finish(f);
}
PKTGEN(fragments, from_netdev, nic)
{
	put_ip_fragment(frame, v6, WORLD, NODE, IPPROTO_UDP, FRAGMENT_MORE, 77);
	put_udp(frame, 5000, 53);
	put_payload(frame, 792);
	finish(frame);
}
CHECK(fragments) { assert_passed(); }
PKTGEN_N(fragments, 2, from_netdev, nic) { make_later_fragment(frame, v6, 77); }
CHECK_N(fragments, 2) { assert_passed(); }
PKTGEN_N(fragments, 3, from_netdev, nic) { make_later_fragment(frame, v6, 78); }
CHECK_N(fragments, 3) { assert_dropped(DROP_FRAG_NOT_FOUND); }

/* ---- the overlay ---- */

SETUP4(overlay)
{
	enforce_node(DIR_INGRESS);
	add_rule(SUBJECT_HOST, DIR_INGRESS, RULE(.deny = true));
}
PKTGEN4(overlay, from_netdev, nic) { make_udp(frame, v6, NODE_OTHER, NODE, 5000, 4789); }
CHECK4(overlay)
{
	assert_passed();
	test_assert(!flow_of(v6, IPPROTO_UDP, NODE_OTHER, 5000, NODE, 4789));
}
/* In fragments, where the underlay carries less than the node was told. */
PKTGEN4_N(overlay, 2, from_netdev, nic)
{
	put_ip_fragment(frame, v6, NODE_OTHER, NODE, IPPROTO_UDP, FRAGMENT_MORE, 77);
	put_udp(frame, 5000, 4789);
	put_payload(frame, 792);
	finish(frame);
}
CHECK4_N(overlay, 2) { assert_passed(); }
PKTGEN4_N(overlay, 3, from_netdev, nic)
{
	put_ip_fragment(frame, v6, NODE_OTHER, NODE, IPPROTO_UDP, 100, 77);
	put_payload(frame, 40);
	finish(frame);
}
CHECK4_N(overlay, 3) { assert_passed(); }
PKTGEN4_N(overlay, 4, from_netdev, nic) { make_udp(frame, v6, NODE_OTHER, NODE, 5000, 4790); }
CHECK4_N(overlay, 4) { assert_dropped(DROP_POLICY_DENY); }
/* Without an overlay the port is one like any other. */
PKTGEN4_N(overlay, 5, from_netdev, nic)
{
	context->variant = VARIANT_NATIVE;
	make_udp(frame, v6, NODE_OTHER, NODE, 5000, 4789);
}
CHECK4_N(overlay, 5) { assert_dropped(DROP_POLICY_DENY); }

/* ---- other addresses ---- */

/* Every address that the stack takes for its own, and what is for many. */
SETUP(other_address) { enforce_node(DIR_INGRESS); }
PKTGEN(other_address, from_netdev, nic) { make_udp(frame, v6, WORLD, LOOPBACK, 1000, 53); }
CHECK(other_address) { assert_node_denies(DIR_INGRESS); }
PKTGEN_N(other_address, 2, from_netdev, nic)
{
	make_udp(frame, v6, WORLD, BROADCAST, 1000, 53);
}
CHECK_N(other_address, 2) { assert_node_denies(DIR_INGRESS); }
/* What it would forward is not its own. */
PKTGEN_N(other_address, 3, from_netdev, nic)
{
	make_udp(frame, v6, WORLD, WORLD_CIDR, 1000, 53);
}
CHECK_N(other_address, 3)
{
	assert_passed();
	test_assert(!flow_of(v6, IPPROTO_UDP, WORLD, 1000, WORLD_CIDR, 53));
}
PKTGEN_N(other_address, 4, from_netdev, nic)
{
	make_udp(frame, v6, WORLD, POD_B, 1000, 53);
}
CHECK_N(other_address, 4) { assert_to_pod(lxc_b); }
