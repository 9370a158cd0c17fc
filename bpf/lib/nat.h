/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Masquerading: what local pods send to the world leaves with the node's
 * address, and what answers finds its way back.
 *
 * A translated flow has two entries. The original one leads from the flow to
 * its port on the node, the reverse one from what an answer looks like to the
 * pod. The reverse entry owns the port: it is made with BPF_NOEXIST and before
 * the other, so that of two flows that want one port the kernel picks the one
 * that gets it. The table is an LRU, which may forget one of the two; whichever
 * it was, the next packet from the pod puts it back: from the original entry
 * the reverse one is plain, and the other way the ports that the flow may have
 * are tried in the same order as when it got one.
 *
 * Entries have no lifetime of their own: the loader removes them with their
 * flow's conntrack entry (services/loader/bpf/nat.py).
 */
#pragma once

#include "common.h"
#include "drop.h"
#include "nat_icmp.h"
#include "nat_map.h"
#include "nat_port.h"
#include "nat_rewrite.h"
#include "packet.h"

/* Changes the frame. Returns 0 or a DROP(). p stays as it is. */
static __always_inline int nat_rewrite(struct __sk_buff *skb, const struct packet *p,
				       const struct nat_change *c, const bool v6)
{
	int ret = 0;

	if (unlikely(p->flags & PACKET_RELATED)) {
		ret = v6 ? nat_rewrite_quote6(skb, p, c) : nat_rewrite_quote4(skb, p, c);
		if (ret || !nat_is_own_address(p, c, v6))
			return ret;
	} else if (likely(!(p->flags & PACKET_FRAGMENT))) {
		ret = nat_rewrite_l4(skb, p, c, v6);
		if (ret)
			return ret;
	}
	return nat_rewrite_address(skb, c, v6);
}

/*
 * The port of p's flow by its original entry. Returns it (network order), or
 * -1 when there is no such entry or the port is another flow's by now.
 */
static __always_inline int nat_known_port(const struct packet *p, const bool v6)
{
	const union nat_value *value;
	struct in6 node;
	union nat_key key;
	__be16 port;

	nat_original_key(&key, p, v6);
	value = nat_find(&key, v6);
	if (unlikely(!value))
		return -1;
	/* To an address that the node had before nothing comes back. */
	nat_address(&node, v6);
	if (likely(nat_value_has_address(value, &node, v6))) {
		port = nat_value_port(value, v6);
		nat_reverse_key(&key, p, port, v6);
		value = nat_find(&key, v6);
		if (likely(value) ? nat_is_owner(value, p, v6) : nat_claim(&key, p, v6))
			return port;
		nat_original_key(&key, p, v6);
	}
	nat_delete(&key, v6);
	return -1;
}

static __always_inline int nat_leave(struct __sk_buff *skb, const struct packet *p, __be16 port,
				     const bool v6)
{
	struct nat_change c = {
		.from = p->flow_saddr,
		.port_from = p->sport,
		.port_to = port,
		.source = 1,
	};

	nat_address(&c.to, v6);
	return nat_rewrite(skb, p, &c, v6);
}

static __always_inline int nat_arrive(struct __sk_buff *skb, struct packet *p,
						 const bool v6)
{
	struct nat_change c = { .from = p->daddr, .port_from = p->dport };
	const union nat_value *value;
	union nat_key key;
	int ret;

	/* Who pings the node means the node. */
	if (nat_is_icmp(p, v6) && !(p->flags & PACKET_ECHO_REPLY))
		return 0;
	nat_key_init(&key, &p->flow_saddr, p->sport, &p->daddr, p->dport, p->protocol, NAT_REVERSE,
		     v6);
	value = nat_find(&key, v6);
	if (!value)
		return 0;
	nat_value_address(&c.to, value, v6);
	c.port_to = nat_value_port(value, v6);
	ret = nat_rewrite(skb, p, &c, v6);
	if (ret)
		return ret;
	p->daddr = c.to;
	p->dport = c.port_to;
	if (nat_is_icmp(p, v6))
		p->sport = c.port_to;
	return 1;
}

/* Global functions, side by side rather than within each other: the stack is short. */
__noinline int nat_known_port4(const struct packet *p)
{
	return p ? nat_known_port(p, false) : -1;
}

__noinline int nat_known_port6(const struct packet *p)
{
	return p ? nat_known_port(p, true) : -1;
}

__noinline int nat_leave4(struct __sk_buff *skb, const struct packet *p, __u32 port)
{
	return p ? nat_leave(skb, p, port, false) : DROP(DROP_INVALID);
}

__noinline int nat_leave6(struct __sk_buff *skb, const struct packet *p, __u32 port)
{
	return p ? nat_leave(skb, p, port, true) : DROP(DROP_INVALID);
}

__noinline int nat_arrive4(struct __sk_buff *skb, struct packet *p)
{
	return p ? nat_arrive(skb, p, false) : DROP(DROP_INVALID);
}

__noinline int nat_arrive6(struct __sk_buff *skb, struct packet *p)
{
	return p ? nat_arrive(skb, p, true) : DROP(DROP_INVALID);
}

/*
 * What a local pod sends, of a flow that has been translated before, as
 * nat_egress() does it: needs no look at whether it is to be. Returns 1, 0 for
 * another flow, or a DROP().
 */
static __always_inline int nat_egress_again(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	int port, ret;

	if (unlikely(p->flags & PACKET_ECHO_REPLY))
		return 0;
	port = v6 ? nat_known_port6(p) : nat_known_port4(p);
	if (unlikely(port < 0))
		return 0;
	ret = v6 ? nat_leave6(skb, p, port) : nat_leave4(skb, p, port);
	return ret ? ret : 1;
}

/*
 * What a local pod sends to the world: rewrites the source address and port,
 * or the echo identifier; of an ICMP error also the destination in its quote.
 * p keeps saying what the pod sent. Returns 0 or a DROP().
 */
static __always_inline int nat_egress(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	int ret = nat_egress_again(skb, p, v6);

	if (likely(ret))
		return ret < 0 ? ret : 0;
	/* What these are about came to the pod by itself, not through here. */
	if (p->flags & (PACKET_ECHO_REPLY | PACKET_RELATED))
		return DROP(DROP_NAT_NO_MAPPING);
	ret = v6 ? nat_create6(skb, p) : nat_create4(skb, p);
	if (ret < 0)
		return ret;
	return v6 ? nat_leave6(skb, p, ret) : nat_leave4(skb, p, ret);
}

/*
 * What comes to one of the node's addresses: if it belongs to a translated
 * flow it is rewritten to the pod, in p too, and 1 is returned; 0 if it does
 * not, or a DROP().
 */
static __always_inline int nat_ingress(struct __sk_buff *skb, struct packet *p, const bool v6)
{
	return v6 ? nat_arrive6(skb, p) : nat_arrive4(skb, p);
}
