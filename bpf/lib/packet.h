/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is known of the packet at hand; lives on the stack of one program run. */
#pragma once

#include "common.h"

/* The packet starts no flow: an ICMP error that quotes one. */
#define PACKET_RELATED 1
/* An ICMP echo reply: it can only answer. */
#define PACKET_ECHO_REPLY 2
/* A later fragment: its ports come from the first one, its flags are unknown. */
#define PACKET_FRAGMENT 4
/* Its flow is new, or starts over. */
#define PACKET_NEW 8
/* It goes against the direction of its flow. */
#define PACKET_REPLY 16
/* Its source stands second in the flow's key. */
#define PACKET_SECOND 64
/* Of the node: it is of no flow, and judged by itself. */
#define PACKET_ALONE 128

#define FAMILY_IPV4 4
#define FAMILY_IPV6 6

/* A flow's key in ct4 and ct6. */
struct ct4_key {
	__be32 addr[2]; /* the smaller (address, port) first */
	__be16 port[2]; /* ICMP echo: the identifier, twice */
	__u8 protocol;
	__u8 requester; /* ICMP echo: 1 + the end that asks, so that pings both ways differ */
	__u16 pad;
};
ASSERT_SIZE(struct ct4_key, 16);

struct ct6_key {
	struct in6 addr[2];
	__be16 port[2];
	__u8 protocol;
	__u8 requester;
	__u16 pad;
};
ASSERT_SIZE(struct ct6_key, 40);

union ct_key {
	struct ct4_key v4;
	struct ct6_key v6;
};

struct packet {
	struct in6 saddr; /* as in the IP header; IPv4 in w[0], the rest 0 */
	struct in6 daddr;
	/* The source in the flow: the same, but for an ICMP error, which is a
	 * packet of the flow that it quotes, that flow's other end. The
	 * destination and the ports are the flow's already. */
	struct in6 flow_saddr;
	__be16 sport; /* of ICMP echo the identifier, twice */
	__be16 dport;
	__u8 protocol; /* of the flow */
	__u8 tcp_flags;
	__u8 flags; /* PACKET_* */
	__u8 direction; /* DIR_*, of the verdict in progress */
	__u8 family; /* FAMILY_* */
	__u8 first_verdict; /* the side in progress has not judged the flow before */
	__u16 l4_offset; /* of the layer 4 header in the frame, 0: not known */
	__u32 generation; /* of the node, when the packet came */
	__u32 now; /* in ticks, see conntrack.h */
	__u32 src_slot; /* of the local endpoint that sent it, 0: none */
	__u32 dst_slot; /* of the local endpoint that it is for, 0: none */
	__u32 src_identity;
	__u32 dst_identity;
	__u32 target; /* ROUTE_* or a tunnel endpoint: where it goes */
	__u32 endpoint_id; /* whose verdict is in progress */
	__u32 rule_cookie;
	__u64 policy_revision;
};
ASSERT_SIZE(struct packet, 104);
