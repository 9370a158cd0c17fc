/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The host firewall: policies that select the node, judged by the host
 * endpoint in its slot. Off, and next to free, until one does.
 *
 * So that no policy can lock the operator out of the node, new flows on the
 * failsafe ports are let through whatever it says; so is the overlay, and
 * everything between the node and itself.
 */
#pragma once

#include "common.h"
#include "endpoint.h"
#include "flow.h"
#include "identity.h"
#include "nd.h"
#include "packet.h"
#include "parse6.h"

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

/* Address resolution is no traffic: without it no policy could allow any. */
static __always_inline bool is_discovery(struct __sk_buff *skb, const bool v6)
{
	return v6 && is_neighbour_discovery(skb);
}

/*
 * A packet between the node and somebody else, judged by the node's policy:
 * its ingress for what it receives, its egress for what it sends. p is parsed,
 * the other end's identity is known. Returns 0 or a DROP().
 */
static __always_inline int host_judge(struct __sk_buff *skb, struct packet *p, const bool sends,
				      const bool v6)
{
	const struct endpoint *host = host_endpoint();
	__u32 side;
	__u32 peer;
	struct flow f;
	int ret;

	if (!host)
		return 0;
	flow_find(&f, p, v6);
	ret = flow_start(&f, p, sends ? host : NULL, sends ? NULL : host);
	if (ret)
		return ret;
	side = f.reply == sends ? DIR_INGRESS : DIR_EGRESS;
	peer = sends ? p->dst_identity : p->src_identity;
	ret = flow_judge(skb, p, &f, host, HOST_SLOT, side, peer);
	if (ret) {
		p->direction = side;
		if (!is_failsafe(side, p->protocol, f.reply ? p->sport : p->dport))
			return ret;
	}
	return flow_commit(skb, p, &f, sends ? TRACE_TO_NETWORK : TRACE_TO_HOST, v6);
}

__noinline int host_sends4(struct __sk_buff *skb, struct packet *p)
{
	return p ? host_judge(skb, p, true, false) : DROP(DROP_INVALID);
}

__noinline int host_sends6(struct __sk_buff *skb, struct packet *p)
{
	return p ? host_judge(skb, p, true, true) : DROP(DROP_INVALID);
}

__noinline int host_receives4(struct __sk_buff *skb, struct packet *p)
{
	return p ? host_judge(skb, p, false, false) : DROP(DROP_INVALID);
}

__noinline int host_receives6(struct __sk_buff *skb, struct packet *p)
{
	return p ? host_judge(skb, p, false, true) : DROP(DROP_INVALID);
}
