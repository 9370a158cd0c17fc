/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Bandwidth: an endpoint with a rate has its packets spaced in time, by the
 * earliest departure time that the fq queue of the device keeps to.
 *
 * from_container only leaves the endpoint's slot in the queue mapping; the
 * time is set on the way out of the node, since a redirect clears it on
 * kernels before 5.18. Local deliveries are not limited.
 */
#pragma once

#include "common.h"
#include "conntrack.h"
#include "drop.h"
#include "endpoint.h"

/* A packet that would have to wait longer is dropped: its sender should notice. */
#define EDT_HORIZON (2 * 1000000000ULL)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ENDPOINT_SLOTS);
	__type(key, __u32); /* slot */
	__type(value, __u64); /* when its next packet may leave: CLOCK_MONOTONIC, ns */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} edt_next SEC(".maps");

static __always_inline void edt_mark(struct __sk_buff *skb, const struct endpoint *ep, __u32 slot)
{
	if (unlikely(ep->rate))
		skb->queue_mapping = slot;
}

/* Sets the departure time of what edt_mark() marked. Returns 0 or a DROP(). */
static __always_inline int edt_schedule(struct __sk_buff *skb)
{
	__u32 slot = skb->queue_mapping;
	__u64 now, next, delay, *edt;
	const struct endpoint *ep;

	if (likely(!slot))
		return 0;
	ep = endpoint_at(slot);
	if (!ep || !ep->rate)
		return 0;
	edt = bpf_map_lookup_elem(&edt_next, &slot);
	if (!edt)
		return 0;
	/* Without a lock: two CPUs at once let one packet too many go. */
	delay = (__u64)skb->wire_len * 1000000000ULL / ep->rate;
	now = bpf_ktime_get_ns();
	next = *edt;
	if (next <= now) {
		*edt = now + delay;
		return 0;
	}
	if (next - now > EDT_HORIZON)
		return DROP(DROP_EDT_HORIZON);
	*edt = next + delay;
	skb->tstamp = next;
	return 0;
}
