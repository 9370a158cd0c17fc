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
/* On a packet of the overlay itself. */
#define MARK_MAGIC_OVERLAY 0x0E00
/* On its way to an endpoint's device, with all that judges it behind it. A pod's own mark never gets here. */
#define MARK_JUDGED 0x4E4B0D00

static __always_inline __u32 mark_of_identity(__u32 identity)
{
	return MARK_MAGIC_IDENTITY | identity << 16 | (identity >> 16 & 0xff);
}

static __always_inline __u32 identity_of_mark(__u32 mark)
{
	return mark >> 16 | (mark & 0xff) << 16;
}

static __always_inline bool mark_has_identity(__u32 mark)
{
	return (mark & MARK_MAGIC_MASK) == MARK_MAGIC_IDENTITY;
}

static __always_inline bool is_workload(__u32 identity)
{
	return identity >= ID_CLUSTER_MIN && identity <= ID_CLUSTER_MAX;
}

/* Nobody of the cluster: what of the world it is depends on which prefixes policies name. */
static __always_inline bool is_outside(__u32 identity)
{
	return identity == ID_WORLD || identity == ID_WORLD_IPV4 || identity == ID_WORLD_IPV6 ||
	       (identity >= ID_PREFIX_MIN && identity <= ID_PREFIX_MAX);
}

/* The other end, when it is no local endpoint. */
struct remote {
	__u32 identity;
	__u32 target; /* ROUTE_* or a tunnel endpoint */
};

static __always_inline bool is_host_address(const struct in6 *addr, const bool v6)
{
	if (v6) {
		struct in6 node = CONFIG(node_ipv6), router = CONFIG(router_ipv6);

		return (in6_equal(addr, &node) || in6_equal(addr, &router)) && !in6_is_zero(addr);
	}
	return addr->w[0] == CONFIG(node_ipv4) || addr->w[0] == CONFIG(router_ipv4);
}

static __always_inline void remote_find(struct remote *r, const struct in6 *addr, const bool v6)
{
	const struct ipcache_value *v;

	r->target = ROUTE_NETWORK;
	if (is_host_address(addr, v6)) {
		r->identity = ID_HOST;
		r->target = ROUTE_HOST;
		return;
	}
	v = ipcache_find(addr, v6);
	if (!v) {
		r->identity = ID_WORLD;
		return;
	}
	r->identity = v->identity;
	if (v->tunnel)
		r->target = bpf_ntohl(v->tunnel);
	else if (v->identity == ID_HOST)
		r->target = ROUTE_HOST;
}

/* Pods of other nodes come through the overlay, if there is one; by another way they are forged. */
static __always_inline bool is_forged(__u32 identity)
{
	return CONFIG(vxlan_ifindex) && is_workload(identity);
}

/*
 * Who is behind the source of a packet that came in by a device of the node:
 * only believed to be what it can be there. An address of this node is then
 * the world, and a pod's is a forgery. Fills p->src_identity; 0 or a DROP().
 */
static __always_inline int look_outside(struct packet *p, const bool v6)
{
	struct remote r;

	remote_find(&r, &p->saddr, v6);
	p->src_identity = r.identity == ID_HOST ? ID_WORLD : r.identity;
	return is_forged(p->src_identity) ? DROP(DROP_INVALID_SIP) : 0;
}

/* Global functions for the stack: that of their callers is full. */
__noinline int find_outside_sender4(struct packet *p)
{
	return p ? look_outside(p, false) : DROP(DROP_INVALID);
}

__noinline int find_outside_sender6(struct packet *p)
{
	return p ? look_outside(p, true) : DROP(DROP_INVALID);
}

static __always_inline int find_outside_sender(struct packet *p, const bool v6)
{
	return v6 ? find_outside_sender6(p) : find_outside_sender4(p);
}

/*
 * What another node says is outside is looked up again: nodes learn of prefixes
 * one after another, and entries for a prefix may be there and not yet here.
 */
static __always_inline int look_outside_again(struct packet *p, const bool v6)
{
	struct remote r;

	remote_find(&r, &p->saddr, v6);
	if (is_outside(r.identity))
		p->src_identity = r.identity;
	return 0;
}

__noinline int find_outside_again4(struct packet *p)
{
	return p ? look_outside_again(p, false) : 0;
}

__noinline int find_outside_again6(struct packet *p)
{
	return p ? look_outside_again(p, true) : 0;
}

static __always_inline void find_outside_again(struct packet *p, const bool v6)
{
	if (v6)
		find_outside_again6(p);
	else
		find_outside_again4(p);
}

/*
 * Who sent a packet that the host's stack hands over: the node itself if it
 * was made here, a local endpoint if from_container marked it; otherwise it
 * came in by a device. Fills p->src_identity; 0 or a DROP().
 */
static __always_inline int find_sender(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	if (!skb->ingress_ifindex) {
		p->src_identity = ID_HOST;
		return 0;
	}
	if (mark_has_identity(skb->mark)) {
		p->src_identity = identity_of_mark(skb->mark);
		return 0;
	}
	return find_outside_sender(p, v6);
}
