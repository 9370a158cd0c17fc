/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The local endpoints: one row, found by device or by address. */
#pragma once

#include "common.h"

#define ENDPOINTS_MAX 4096

struct endpoint {
	__u32 ifindex; /* of the device on the host's side */
	__u32 identity;
	__u32 subject; /* whose policy it is under; 0 is no subject */
	__u32 endpoint_id;
	/* These two stand as in a frame towards the pod: one copy writes both. */
	__u8 pod_mac[ETH_ALEN];
	__u8 host_mac[ETH_ALEN];
	__be32 ipv4;
	__u32 flags;
	__u32 pad;
};
ASSERT_SIZE(struct endpoint, 40);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINTS_MAX);
	__type(key, __u32); /* ifindex */
	__type(value, struct endpoint);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoint_dev SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINTS_MAX);
	__type(key, __be32);
	__type(value, struct endpoint);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoint_ip4 SEC(".maps");

static __always_inline const struct endpoint *endpoint_by_device(__u32 ifindex)
{
	return bpf_map_lookup_elem(&endpoint_dev, &ifindex);
}

static __always_inline const struct endpoint *endpoint_by_ipv4(__be32 addr)
{
	return bpf_map_lookup_elem(&endpoint_ip4, &addr);
}
