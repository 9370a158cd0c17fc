/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Ports of the node that no policy closes. */
#pragma once

#include "common.h"

#define FAILSAFE_MAX 256

struct failsafe_key {
	__u8 direction; /* DIR_*, of the node's policy */
	__u8 protocol;
	__be16 port; /* the responder's */
};
ASSERT_SIZE(struct failsafe_key, 4);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FAILSAFE_MAX);
	__type(key, struct failsafe_key);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} failsafe SEC(".maps");

static __always_inline bool is_failsafe(__u8 direction, __u8 protocol, __be16 port)
{
	struct failsafe_key key = { direction, protocol, port };

	return bpf_map_lookup_elem(&failsafe, &key);
}
