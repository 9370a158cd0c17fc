/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Types, constants and attributes that every part of the datapath uses. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define ASSERT_SIZE(type, size) _Static_assert(sizeof(type) == (size), #type " has a new size")

/* Directions as policy and metrics know them, seen from the endpoint. */
#define DIR_INGRESS 0
#define DIR_EGRESS 1
#define DIR_NONE 2

/* Reserved identities: numbers and meaning are Cilium's. */
#define ID_UNKNOWN 0
#define ID_HOST 1
#define ID_WORLD 2
#define ID_REMOTE_NODE 6
/* Of an address outside that no longer prefix has, where policies name 0.0.0.0/0 or ::/0. */
#define ID_WORLD_IPV4 9
#define ID_WORLD_IPV6 10
/* Identities of workloads, the same number on every node. */
#define ID_CLUSTER_MIN 256
#define ID_CLUSTER_MAX 65535
/* Of prefixes outside that policies name; they fit into a mark and a VNI. */
#define ID_PREFIX_MIN 0xff0000
#define ID_PREFIX_MAX 0xffffff

/* In linux/in6.h, which wants the C library's headers. */
#define IPPROTO_ICMPV6 58

#define IP_MF 0x2000
#define IP_OFFSET 0x1FFF

/* An IPv6 address. Where both families share a field, an IPv4 address is in w[0] and the rest is 0. */
struct in6 {
	__be32 w[4];
};
ASSERT_SIZE(struct in6, 16);

static __always_inline bool in6_equal(const struct in6 *a, const struct in6 *b)
{
	return !((a->w[0] ^ b->w[0]) | (a->w[1] ^ b->w[1]) | (a->w[2] ^ b->w[2]) |
		 (a->w[3] ^ b->w[3]));
}

static __always_inline bool in6_is_zero(const struct in6 *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

static __always_inline bool address_equal(const struct in6 *a, const struct in6 *b, const bool v6)
{
	return v6 ? in6_equal(a, b) : a->w[0] == b->w[0];
}

static __always_inline bool is_link_local(const struct in6 *addr)
{
	return (addr->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline bool is_multicast(const struct in6 *addr, const bool v6)
{
	if (v6)
		return (addr->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
	/* With what is above, the broadcast address among it. */
	return (addr->w[0] & bpf_htonl(0xe0000000)) == bpf_htonl(0xe0000000);
}

/* linux/ipv6.h has bit fields and more than is needed here. */
struct ipv6_header {
	__be32 version_class_label;
	__be16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	struct in6 saddr;
	struct in6 daddr;
};
ASSERT_SIZE(struct ipv6_header, 40);

/*
 * What one device's stack noted on the packet means nothing to the next one.
 * Volatile: the verifier takes no two fields of the context in one store.
 */
static __always_inline void clear_metadata(struct __sk_buff *skb)
{
	*(volatile __u32 *)&skb->mark = 0;
	*(volatile __u32 *)&skb->queue_mapping = 0;
}
