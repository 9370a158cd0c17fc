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
/* Identities of workloads, the same number on every node. */
#define ID_CLUSTER_MIN 256
#define ID_CLUSTER_MAX 65535

#define IP_MF 0x2000
#define IP_OFFSET 0x1FFF

/*
 * What one device's stack noted on the packet means nothing to the next one.
 * Volatile: the verifier takes no two fields of the context in one store.
 */
static __always_inline void clear_metadata(struct __sk_buff *skb)
{
	*(volatile __u32 *)&skb->mark = 0;
	*(volatile __u32 *)&skb->queue_mapping = 0;
}
