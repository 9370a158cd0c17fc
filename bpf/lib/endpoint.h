/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The local endpoints. A row is in a slot; devices and addresses lead to slots.
 *
 * Arrays are read in a few nanoseconds but overwritten in place, so the loader
 * never writes another endpoint into a slot that can be reached: new content
 * goes to a free slot, then the indexes turn, then the node's generation. A
 * slot is used again only when no running program can remember it.
 */
#pragma once

#include "common.h"
#include "packet.h"

#define ENDPOINT_SLOTS 8192
#define ENDPOINT_INDEX_MAX 65536

/* The node itself, as the one whom host policies are about. */
#define HOST_SLOT 1

/*
 * The endpoint's device is a netkit one: what the pod sends is seen in the pod's
 * own transmission, where redirect_peer does not work.
 */
#define ENDPOINT_NETKIT 1

/* One cache line. */
struct endpoint {
	__u32 ifindex; /* of the device on the host's side */
	__u32 identity;
	__u32 subject; /* whose policy it is under; 0 is no subject */
	__u32 endpoint_id;
	/* These two stand as in a frame towards the pod: one copy writes both. */
	__u8 pod_mac[ETH_ALEN];
	__u8 host_mac[ETH_ALEN];
	__be32 ipv4; /* 0: none */
	struct in6 ipv6; /* zero: none */
	__u32 flags; /* ENDPOINT_* */
	__u32 pad;
	__u64 rate; /* bytes a second that may leave the node, 0: no limit */
};
ASSERT_SIZE(struct endpoint, 64);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ENDPOINT_SLOTS);
	__type(key, __u32);
	__type(value, struct endpoint);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoint_slot SEC(".maps");

/* Slots by ifindex, for the small ones: five times as fast as the hash. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ENDPOINT_INDEX_MAX);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoint_index SEC(".maps");

/* Slots by ifindex, all of them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINT_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoint_dev SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINT_SLOTS);
	__type(key, __be32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoint_ip4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINT_SLOTS);
	__type(key, struct in6);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoint_ip6 SEC(".maps");

static __always_inline __u32 endpoint_slot_of_device(__u32 ifindex)
{
	__u32 *slot;

	if (likely(ifindex < ENDPOINT_INDEX_MAX))
		slot = bpf_map_lookup_elem(&endpoint_index, &ifindex);
	else
		slot = bpf_map_lookup_elem(&endpoint_dev, &ifindex);
	return slot ? *slot : 0;
}

/* The slot of the local endpoint that has the address, or 0. */
static __always_inline __u32 endpoint_slot_of_address(const struct in6 *addr, const bool v6)
{
	/* Before 6.2 no key may be behind a pointer that a global function got. */
	struct in6 key = *addr;
	__u32 *slot;

	slot = v6 ? bpf_map_lookup_elem(&endpoint_ip6, &key) :
		    bpf_map_lookup_elem(&endpoint_ip4, &key.w[0]);
	return slot ? *slot : 0;
}

/* The row in a slot, or NULL for slot 0. */
static __always_inline const struct endpoint *endpoint_at(__u32 slot)
{
	return slot ? bpf_map_lookup_elem(&endpoint_slot, &slot) : NULL;
}

/* The host endpoint while a policy selects the node, else NULL. */
static __always_inline const struct endpoint *host_endpoint(void)
{
	__u32 slot = HOST_SLOT;
	const struct endpoint *host = bpf_map_lookup_elem(&endpoint_slot, &slot);

	return host && host->subject ? host : NULL;
}
