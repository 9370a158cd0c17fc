/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where a packet was sent: a test run decides on a redirect but does not show it. Empty but for tests. */
#pragma once

#include "common.h"

#define FORWARD_REDIRECT 1
#define FORWARD_PEER 2
#define FORWARD_NEIGH 3
#define FORWARD_INGRESS 4

#ifdef FIMBRIA_TEST

struct forward {
	__u32 kind; /* FORWARD_* */
	__u32 ifindex;
	__u32 vni; /* with a tunnel */
	__be32 remote;
};
ASSERT_SIZE(struct forward, 16);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct forward);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} test_forward SEC(".maps");

static __always_inline void forward_note(__u32 kind, __u32 ifindex, __u32 vni, __be32 remote)
{
	__u32 zero = 0;
	struct forward *noted = bpf_map_lookup_elem(&test_forward, &zero);

	if (noted)
		*noted = (struct forward){ kind, ifindex, vni, remote };
}

#else

static __always_inline void forward_note(__u32 kind, __u32 ifindex, __u32 vni, __be32 remote)
{
	(void)kind;
	(void)ifindex;
	(void)vni;
	(void)remote;
}

#endif
