/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who is at an address, and what the mark says of where a packet comes from.
 * Within a node the identity travels in skb->mark, laid out as Cilium does:
 * 0x0F00 in the low half with the identity's top byte below it, the identity's
 * low 16 bits in the high half. A mark never crosses a namespace.
 */
#pragma once

#include "common.h"
#include "config.h"
#include "conntrack.h"
#include "drop.h"
#include "ipcache.h"

#define MARK_MAGIC_IDENTITY 0x0F00
#define MARK_MAGIC_MASK 0x0F00

static __always_inline __u32 mark_of_identity(__u32 identity)
{
	return MARK_MAGIC_IDENTITY | identity << 16 | (identity >> 16 & 0xff);
}

static __always_inline __u32 identity_of_mark(__u32 mark)
{
	return mark >> 16 | (mark & 0xff) << 16;
}

/* The other end, when it is no local endpoint. */
struct remote {
	__u32 identity;
	__be32 tunnel;
	__u32 generation; /* of the ipcache, if the identity came from its trie and stays good */
};

static __always_inline bool is_host_address(__be32 addr)
{
	return addr == CONFIG(node_ipv4) || addr == CONFIG(router_ipv4);
}

/* known: what the flow remembers of this address, or NULL. */
static __always_inline void remote_find(struct remote *r, __be32 addr, const struct ct_side *known)
{
	const struct ipcache_value *v;
	__u32 generation;

	r->tunnel = 0;
	r->generation = 0;
	if (is_host_address(addr)) {
		r->identity = ID_HOST;
		return;
	}
	v = ipcache_exact(addr);
	if (likely(v)) {
		r->identity = v->identity;
		r->tunnel = v->tunnel;
		return;
	}
	generation = ipcache_generation();
	if (known && known->ipcache_generation && known->ipcache_generation == generation) {
		r->identity = known->identity;
		r->generation = generation;
		return;
	}
	v = ipcache_prefix(addr);
	r->identity = v ? v->identity : ID_WORLD;
	r->tunnel = v ? v->tunnel : 0;
	/* A flow remembers only the identity: one that is tunnelled looks again. */
	if (!r->tunnel)
		r->generation = generation;
}

/*
 * Who sent a packet that the host's stack hands over: the node itself if it
 * was made here, a local endpoint if from_container marked it; otherwise it
 * came in by a device and is only believed to be what it can be there. An
 * address of this node is then the world, and a pod's is a forgery.
 * Returns 0 or a DROP().
 */
static __always_inline int remote_find_sender(struct __sk_buff *skb, struct remote *r, __be32 addr,
					      const struct ct_side *known)
{
	r->tunnel = 0;
	r->generation = 0;
	if (!skb->ingress_ifindex) {
		r->identity = ID_HOST;
		return 0;
	}
	if ((skb->mark & MARK_MAGIC_MASK) == MARK_MAGIC_IDENTITY) {
		r->identity = identity_of_mark(skb->mark);
		return 0;
	}
	remote_find(r, addr, known);
	if (r->identity == ID_HOST) {
		r->identity = ID_WORLD;
		r->generation = 0;
	}
	if (r->identity >= ID_CLUSTER_MIN && r->identity <= ID_CLUSTER_MAX)
		return DROP(DROP_INVALID_SIP);
	return 0;
}
