/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is known of the packet at hand; lives on the stack of one program run. */
#pragma once

#include "common.h"

/* The flow's addresses as this packet sees them: its own source first. */
struct flow {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
};

/* The packet starts no flow: an ICMP error that quotes one. */
#define PACKET_RELATED 1
/* An ICMP echo reply: it can only answer. */
#define PACKET_ECHO_REPLY 2
/* A later fragment: its ports come from the first one, its flags are unknown. */
#define PACKET_FRAGMENT 4
/* Its flow is new, or starts over. */
#define PACKET_NEW 8

struct packet {
	__be32 saddr; /* as in the IP header */
	__be32 daddr;
	struct flow flow; /* the same, but for an ICMP error the quoted flow turned round */
	__u8 protocol; /* of the flow */
	__u8 tcp_flags;
	__u8 flags; /* PACKET_* */
	__u8 direction; /* DIR_*, of the verdict in progress */
	__u32 src_identity;
	__u32 dst_identity;
	__u32 endpoint_id; /* whose verdict is in progress */
	__u32 rule_cookie;
	__u64 policy_revision;
};
