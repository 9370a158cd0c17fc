/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The scenario with a policy that selects the node. */
#pragma once

#include "lib/failsafe.h"
#include "tests/lib/scenario.h"

#define ENDPOINT_HOST 0xffffffff
#define FIMBRIA_HOST_MAC { 0x02, 0, 0, 0, 0x03, 0x01 }
#define FIMBRIA_NET_MAC { 0x02, 0, 0, 0, 0x03, 0x02 }

/* The cluster, and the node under a subject that enforces nothing yet. */
__noinline int add_cluster_with_policy(void)
{
	const __u8 host_mac[ETH_ALEN] = FIMBRIA_HOST_MAC, net_mac[ETH_ALEN] = FIMBRIA_NET_MAC;
	struct endpoint *host;

	add_cluster();
	add_subject(SUBJECT_HOST);
	host = endpoint_row(HOST_SLOT);
	if (!host)
		return 0;
	host->subject = SUBJECT_HOST;
	host->endpoint_id = ENDPOINT_HOST;
	__builtin_memcpy(host->pod_mac, host_mac, ETH_ALEN);
	__builtin_memcpy(host->host_mac, net_mac, ETH_ALEN);
	return 0;
}

/* What no rule allows is denied in that direction. */
static __always_inline void enforce_node(__u32 direction)
{
	add_cluster_with_policy();
	enforce(SUBJECT_HOST, direction);
}

static __always_inline void add_failsafe(__u8 direction, __u8 protocol, __u16 port)
{
	struct failsafe_key key = { direction, protocol, bpf_htons(port) };
	__u32 one = 1;

	bpf_map_update_elem(&failsafe, &key, &one, BPF_ANY);
}

/* Handed on as it came. */
#define assert_passed()                                                     \
	do {                                                                \
		assert_eq(result->action, TC_ACT_OK);                       \
		assert_unchanged();                                         \
	} while (0)

/* Dropped by the node's policy, for the packet's own direction or its flow's. */
#define assert_node_denies(direction_)                                      \
	do {                                                                \
		const struct event *e_ = test_event(0);                     \
                                                                            \
		assert_dropped(DROP_POLICY);                                \
		assert_eq(counted(DROP_POLICY, direction_), 1);             \
		test_require(e_);                                           \
		assert_eq(e_->endpoint_id, ENDPOINT_HOST);                  \
	} while (0)
