/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ARP and neighbour discovery: whatever a pod asks for is behind its device. */
#include "tests/lib/scenario.h"

#define MAC_IS(bytes, ...)                                                              \
	({                                                                              \
		const __u8 want_[ETH_ALEN] = __VA_ARGS__;                               \
		const __u8 *got_ = (bytes);                                             \
		got_[0] == want_[0] && got_[1] == want_[1] && got_[2] == want_[2] &&    \
			got_[3] == want_[3] && got_[4] == want_[4] && got_[5] == want_[5]; \
	})

/* ---- ARP ---- */

#define ARP_ANSWERED(name, sender_host, target_host)                                    \
	SETUP4(name) { add_cluster(); }                                                 \
	PKTGEN4(name, from_container, lxc_a) { make_arp(frame, 1, sender_host, target_host); } \
	CHECK4(name)                                                                    \
	{                                                                               \
		const struct arp_message *arp = arp_of(frame);                          \
                                                                                        \
		assert_to_pod(lxc_a);                                                   \
		assert_eq(frame->length, 42);                                           \
		assert_eq(arp->operation, bpf_htons(2));                                \
		assert_eq(arp->sender, address4(target_host));                          \
		assert_eq(arp->target, address4(sender_host));                          \
		test_assert(MAC_IS(arp->sender_mac, LXC_A_MAC));                        \
		test_assert(MAC_IS(arp->target_mac, FRAME_SOURCE_MAC));                 \
		test_assert(MAC_IS(ethernet_of(frame)->h_source, LXC_A_MAC));           \
		test_assert(MAC_IS(ethernet_of(frame)->h_dest, FRAME_SOURCE_MAC));      \
		assert_eq(counted(REASON_FORWARDED, DIR_EGRESS), 1);                    \
	}

ARP_ANSWERED(arp_for_router, POD_A, ROUTER)
ARP_ANSWERED(arp_for_neighbour, POD_A, POD_B)
ARP_ANSWERED(arp_for_world, POD_A, WORLD)
ARP_ANSWERED(arp_for_nobody, POD_A, POD_FREE)
/* Asks whether somebody has the address (RFC 5227): all but its own are taken. */
ARP_ANSWERED(arp_probe_of_other, HOST_NONE, POD_B)

#define ARP_DROPPED(name, reason, build)                                                \
	SETUP4(name) { add_cluster(); }                                                 \
	PKTGEN4(name, from_container, lxc_a) { build; }                                 \
	CHECK4(name)                                                                    \
	{                                                                               \
		assert_dropped(reason);                                                 \
		assert_unchanged();                                                     \
		/* What only needs no answer is counted, and not worth a report. */     \
		assert_eq(result->events, reason == DROP_ARP_IGNORED ? 0 : 1);          \
	}

ARP_DROPPED(arp_for_itself, DROP_ARP_IGNORED, make_arp(frame, 1, POD_A, POD_A))
ARP_DROPPED(arp_probe, DROP_ARP_IGNORED, make_arp(frame, 1, HOST_NONE, POD_A))
ARP_DROPPED(arp_reply, DROP_ARP_IGNORED, make_arp(frame, 2, POD_A, ROUTER))
ARP_DROPPED(arp_rarp, DROP_ARP_IGNORED, make_arp(frame, 3, POD_A, ROUTER))
ARP_DROPPED(arp_forged, DROP_INVALID_SIP, make_arp(frame, 1, POD_B, ROUTER))
ARP_DROPPED(arp_forged_router, DROP_INVALID_SIP, make_arp(frame, 1, ROUTER, POD_B))
/* The announcement of another's address, as an attacker would send it. */
ARP_DROPPED(arp_poison, DROP_ARP_IGNORED, make_arp(frame, 2, POD_B, POD_B))
ARP_DROPPED(arp_hardware, DROP_INVALID,
	    make_arp(frame, 1, POD_A, ROUTER)->hardware = bpf_htons(6))
ARP_DROPPED(arp_protocol, DROP_INVALID,
	    make_arp(frame, 1, POD_A, ROUTER)->protocol = bpf_htons(ETH_P_IPV6))
ARP_DROPPED(arp_hardware_length, DROP_INVALID,
	    make_arp(frame, 1, POD_A, ROUTER)->hardware_length = 8)
ARP_DROPPED(arp_protocol_length, DROP_INVALID,
	    make_arp(frame, 1, POD_A, ROUTER)->protocol_length = 16)
ARP_DROPPED(arp_short, DROP_INVALID, make_arp(frame, 1, POD_A, ROUTER); frame->length--)
ARP_DROPPED(arp_empty, DROP_INVALID, make_arp(frame, 1, POD_A, ROUTER); frame->length = 14)

/* Padded to the least that Ethernet sends. */
SETUP4(arp_padded) { add_cluster(); }
PKTGEN4(arp_padded, from_container, lxc_a)
{
	make_arp(frame, 1, POD_A, ROUTER);
	frame->length = 60;
}
CHECK4(arp_padded)
{
	assert_to_pod(lxc_a);
	assert_eq(frame->length, 60);
	assert_eq(arp_of(frame)->operation, bpf_htons(2));
}

/* The node asks its pods by itself, and its answers are no traffic either. */
SETUP4(arp_of_node) { add_cluster(); enforce(SUBJECT_A, DIR_INGRESS); }
PKTGEN4(arp_of_node, to_container, lxc_a) { make_arp(frame, 1, ROUTER, POD_A); }
CHECK4(arp_of_node)
{
	assert_eq(result->action, TC_ACT_OK);
	assert_unchanged();
}
/* On fimbria_host everybody is at one address, whose frames are taken off there. */
PKTGEN4_N(arp_of_node, 2, from_host, host) { make_arp(frame, 1, ROUTER, POD_REMOTE); }
CHECK4_N(arp_of_node, 2)
{
	assert_forward(FORWARD_INGRESS, DEVICE_host);
	assert_eq(arp_of(frame)->operation, bpf_htons(2));
	assert_eq(arp_of(frame)->sender, address4(POD_REMOTE));
}

/* What is no endpoint's device gets no answer. */
SETUP4(arp_unregistered) { set_node_flags(NODE_EVENTS); }
PKTGEN4(arp_unregistered, from_container, lxc_a) { make_arp(frame, 1, POD_A, ROUTER); }
CHECK4(arp_unregistered) { assert_dropped(DROP_NO_ENDPOINT_ROW); }

/* ---- neighbour discovery ---- */

#define ND_LENGTH (14 + 40 + 32)

#define ND_ANSWERED(name, source, destination, asked, bare, change)                     \
	SETUP6(name) { add_cluster(); }                                                 \
	PKTGEN6(name, from_container, lxc_a)                                            \
	{                                                                               \
		make_solicitation(frame, source, destination, asked, bare);             \
		change;                                                                 \
	}                                                                               \
	CHECK6(name)                                                                    \
	{                                                                               \
		const struct nd_packet *nd = nd_of(frame);                              \
		struct in6 wanted = address6(asked), asker = address6(source);          \
		struct in6 *ends = (void *)&ipv6_of(frame)->saddr;                      \
                                                                                        \
		assert_to_pod(lxc_a);                                                   \
		assert_eq(frame->length, ND_LENGTH);                                    \
		assert_eq(nd->icmp.type, TYPE6_NEIGHBOUR_ADVERTISEMENT);                \
		assert_eq(nd->icmp.code, 0);                                            \
		/* Solicited, overrides what was known before. */                      \
		assert_eq(bpf_ntohs(nd->icmp.id) & 0x6000, 0x6000);                     \
		test_assert(in6_equal(&nd->target, &wanted));                           \
		assert_eq(nd->option, ND_OPTION_TARGET);                                \
		assert_eq(nd->option_length, 1);                                        \
		test_assert(MAC_IS(nd->mac, LXC_A_MAC));                                \
		test_assert(in6_equal(&ends[0], &wanted));                              \
		test_assert(in6_equal(&ends[1], &asker));                               \
		assert_eq(ipv6_of(frame)->hop_limit, 255);                              \
		assert_eq(ipv6_of(frame)->payload_len, bpf_htons(32));                  \
		test_assert(MAC_IS(ethernet_of(frame)->h_source, LXC_A_MAC));           \
		test_assert(MAC_IS(ethernet_of(frame)->h_dest, POD_A_MAC));             \
		frame_parse(frame);                                                     \
		test_assert(checksums_hold(frame));                                     \
		assert_eq(counted(REASON_FORWARDED, DIR_EGRESS), 1);                    \
	}

ND_ANSWERED(nd_for_router, POD_A, SOLICITED_ROUTER, ROUTER, false, )
/* Directly, to see whether it is still there. */
ND_ANSWERED(nd_unicast, POD_A, ROUTER, ROUTER, false, )
ND_ANSWERED(nd_without_option, POD_A, ROUTER, ROUTER, true, )
ND_ANSWERED(nd_from_link_local, LINK_LOCAL, SOLICITED_ROUTER, ROUTER, false, )
ND_ANSWERED(nd_for_neighbour, POD_A, BROADCAST, POD_B, false, )
ND_ANSWERED(nd_for_world, POD_A, BROADCAST, WORLD, false, )
ND_ANSWERED(nd_padded, POD_A, SOLICITED_ROUTER, ROUTER, true, frame->length += 22)
/* With another option behind, such as a nonce (RFC 3971). */
ND_ANSWERED(nd_nonce, POD_A, SOLICITED_ROUTER, ROUTER, false, {
	__u8 *nonce = frame_put(frame, 8);
	nonce[0] = 14;
	nonce[1] = 1;
	finish(frame);
})

#define ND_DROPPED(name, reason, build)                                                 \
	SETUP6(name) { add_cluster(); }                                                 \
	PKTGEN6(name, from_container, lxc_a) { build; }                                 \
	CHECK6(name)                                                                    \
	{                                                                               \
		assert_dropped(reason);                                                 \
		assert_eq(result->events, reason == DROP_ND_IGNORED ? 0 : 1);           \
	}

ND_DROPPED(nd_dad, DROP_ND_IGNORED,
	   make_solicitation(frame, HOST_NONE, SOLICITED_ROUTER, POD_A, true))
ND_DROPPED(nd_dad_of_other, DROP_ND_IGNORED,
	   make_solicitation(frame, HOST_NONE, SOLICITED_ROUTER, POD_B, true))
ND_DROPPED(nd_for_itself, DROP_ND_IGNORED,
	   make_solicitation(frame, POD_A, BROADCAST, POD_A, false))
ND_DROPPED(nd_link_local_itself, DROP_ND_IGNORED,
	   make_solicitation(frame, LINK_LOCAL, BROADCAST, LINK_LOCAL, false))
ND_DROPPED(nd_forged, DROP_INVALID_SIP,
	   make_solicitation(frame, POD_B, SOLICITED_ROUTER, ROUTER, false))
ND_DROPPED(nd_forged_router, DROP_INVALID_SIP,
	   make_solicitation(frame, ROUTER, BROADCAST, POD_B, false))
/* RFC 4861: what has passed a router, or has a code, is none. */
ND_DROPPED(nd_hops, DROP_INVALID,
	   make_solicitation(frame, POD_A, ROUTER, ROUTER, false);
	   ipv6_of(frame)->hop_limit = 254)
ND_DROPPED(nd_code, DROP_INVALID,
	   make_solicitation(frame, POD_A, ROUTER, ROUTER, false)->icmp.code = 1;
	   finish_checksums(frame))
ND_DROPPED(nd_short, DROP_INVALID,
	   make_solicitation(frame, POD_A, ROUTER, ROUTER, true);
	   frame->length -= 4;
	   finish(frame))
ND_DROPPED(nd_without_target, DROP_INVALID,
	   make_solicitation(frame, POD_A, ROUTER, ROUTER, true);
	   frame->length -= 16;
	   finish(frame))
ND_DROPPED(nd_beyond_frame, DROP_INVALID,
	   make_solicitation(frame, POD_A, ROUTER, ROUTER, true);
	   frame->length -= 16)
ND_DROPPED(nd_advertisement, DROP_ND_IGNORED,
	   make_solicitation(frame, POD_A, ROUTER, ROUTER, false)->icmp.type =
		   TYPE6_NEIGHBOUR_ADVERTISEMENT;
	   finish_checksums(frame))

/* What every IPv6 stack says to its link unasked, from an address that it has by itself. */
static __always_inline void put_listener_report(struct frame *f, enum host source)
{
	put_ip(f, true, source, MULTICAST, EXT_HOP_BY_HOP);
	put_extension(f, IPPROTO_ICMPV6, 1);
	put_icmp(f, true, 143, 0, 1);
	put_payload(f, 20);
	finish(f);
}

ND_DROPPED(chatter_mld_report, DROP_ND_IGNORED, put_listener_report(frame, LINK_LOCAL))
ND_DROPPED(chatter_first_mld_report, DROP_ND_IGNORED, put_listener_report(frame, HOST_NONE))
ND_DROPPED(chatter_router_solicitation, DROP_ND_IGNORED,
	   make_icmp(frame, v6, LINK_LOCAL, BROADCAST, TYPE6_ROUTER_SOLICITATION, 0, 0))
ND_DROPPED(chatter_mdns, DROP_ND_IGNORED, make_udp(frame, v6, LINK_LOCAL, MULTICAST, 5353, 5353))
/* To one host from such an address is another matter. */
ND_DROPPED(link_local_to_pod, DROP_INVALID_SIP, make_udp(frame, v6, LINK_LOCAL, POD_B, 5000, 53))
ND_DROPPED(unspecified_to_pod, DROP_INVALID_SIP, make_udp(frame, v6, HOST_NONE, POD_B, 5000, 53))
ND_DROPPED(forged_to_multicast, DROP_INVALID_SIP, make_udp(frame, v6, POD_B, MULTICAST, 5353, 5353))

/* Of the node's own, nothing is judged; what is forwarded is. */
SETUP6(nd_of_node) { add_cluster(); enforce(SUBJECT_A, DIR_INGRESS); }
PKTGEN6(nd_of_node, to_container, lxc_a)
{
	make_solicitation(frame, ROUTER, POD_A, POD_A, false);
}
CHECK6(nd_of_node)
{
	assert_eq(result->action, TC_ACT_OK);
	assert_unchanged();
}
PKTGEN6_N(nd_of_node, 2, to_container, lxc_a)
{
	context->ingress_ifindex = CONFIG(nic_ifindex);
	make_solicitation(frame, WORLD, POD_A, POD_A, false);
}
CHECK6_N(nd_of_node, 2) { assert_dropped(DROP_ND_IGNORED); }

/* An endpoint without IPv6 may still ask by its link-local address, and only so. */
SETUP6(nd_ipv4_only)
{
	struct endpoint *row;

	add_cluster();
	row = endpoint_row(SLOT_A);
	if (row)
		row->ipv6 = address6(HOST_NONE);
}
PKTGEN6(nd_ipv4_only, from_container, lxc_a)
{
	make_solicitation(frame, POD_A, SOLICITED_ROUTER, ROUTER, false);
}
CHECK6(nd_ipv4_only) { assert_dropped(DROP_INVALID_SIP); }
