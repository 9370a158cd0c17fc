/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Reports to the loader through one ring buffer: drops, policy verdicts, and
 * the beginnings and ends of flows. Nothing is made that nobody reads.
 */
#pragma once

#include "common.h"
#include "drop_reasons.h"
#include "ipcache.h"
#include "metrics.h"
#include "packet.h"

#define EVENT_DROP 1
#define EVENT_VERDICT 2
#define EVENT_TRACE 3

#define VERDICT_DENY 0
#define VERDICT_ALLOW 1
/* Denied, but in audit mode: the packet passed. */
#define VERDICT_AUDIT 2

/* Of a trace event: where the packet goes. */
#define TRACE_TO_ENDPOINT 1
#define TRACE_TO_OVERLAY 2
#define TRACE_TO_HOST 3
#define TRACE_TO_NETWORK 4

/* Of a trace event: what the packet is to its flow. */
#define FLOW_NEW 1
#define FLOW_RELATED 2
#define FLOW_CLOSING 3

#define EVENTS_BYTES (1 << 20)
/* Ethernet, IPv6 and TCP headers with some options, or what an error quotes. */
#define EVENT_CAPTURE 96

struct event {
	__u64 time; /* CLOCK_MONOTONIC, ns */
	__u64 policy_revision;
	__u8 kind; /* EVENT_* */
	__u8 reason; /* of a drop */
	__u8 direction; /* DIR_* */
	__u8 verdict; /* VERDICT_* */
	__u16 file; /* source_files.h */
	__u16 line;
	__u32 ifindex;
	__u32 endpoint_id;
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule_cookie;
	__u32 length; /* of the packet, bytes */
	struct in6 saddr; /* an IPv4 address fills the first four bytes */
	struct in6 daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 family; /* FAMILY_* */
	__u8 point; /* of a trace: TRACE_* */
	__u8 state; /* of a trace: FLOW_* */
	__u8 pad[3];
	__u32 captured; /* how much of bytes is the packet's */
	__u8 bytes[EVENT_CAPTURE]; /* its beginning, from the Ethernet header on */
};
ASSERT_SIZE(struct event, 192);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_BYTES);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

/* When the reader was last woken, in ticks of the coarse clock; a race only wakes it once more. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events_woken SEC(".maps");

/*
 * Waking the reader costs more than all the rest: once a tick of the coarse
 * clock is often enough, and a flood costs no more than that. The reader looks
 * by itself for what came later in the tick.
 */
static __always_inline __u64 event_wakeup(void)
{
	__u64 tick = bpf_ktime_get_coarse_ns();
	__u32 zero = 0;
	__u64 *woken = bpf_map_lookup_elem(&events_woken, &zero);

	if (!woken || *woken == tick)
		return BPF_RB_NO_WAKEUP;
	*woken = tick;
	return BPF_RB_FORCE_WAKEUP;
}

struct event_about {
	__u32 location; /* line in the low half, file in the high one */
	__u8 kind;
	__u8 reason;
	__u8 verdict;
	__u8 point;
	__u8 state;
	__u8 pad[3];
};

/* Never called or loaded: so that BTF has struct event, which the loader's layout is checked against. */
__attribute__((used)) __noinline int event_layout(const struct event *e)
{
	return e ? e->kind : 0;
}

static __always_inline void event_fill(struct event *e, struct __sk_buff *skb,
				       const struct packet *p, const struct event_about *about)
{
	e->time = bpf_ktime_get_ns();
	e->policy_revision = p->policy_revision;
	e->kind = about->kind;
	e->reason = about->reason;
	e->direction = p->direction;
	e->verdict = about->verdict;
	e->file = about->location >> 16;
	e->line = about->location;
	e->ifindex = skb->ifindex;
	e->endpoint_id = p->endpoint_id;
	e->src_identity = p->src_identity;
	e->dst_identity = p->dst_identity;
	e->rule_cookie = p->rule_cookie;
	e->length = skb->len;
	e->saddr = p->saddr;
	e->daddr = p->daddr;
	e->sport = p->sport;
	e->dport = p->dport;
	e->protocol = p->protocol;
	e->tcp_flags = p->tcp_flags;
	e->family = p->family;
	e->point = about->point;
	e->state = about->state;
	__builtin_memset(e->pad, 0, sizeof(e->pad));
}

/* Global: verified once. */
__noinline int event_emit(struct __sk_buff *skb, const struct packet *p,
			  const struct event_about *about)
{
	struct event *e;
	__u32 length;

	if (!p || !about)
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		metrics_count(REASON_EVENT_LOST, p->direction, 0);
		return 0;
	}
	event_fill(e, skb, p, about);
	length = skb->len;
	if (length >= EVENT_CAPTURE) {
		e->captured = EVENT_CAPTURE;
		if (bpf_skb_load_bytes(skb, 0, e->bytes, EVENT_CAPTURE))
			e->captured = 0;
	} else {
		__builtin_memset(e->bytes, 0, EVENT_CAPTURE);
		e->captured = length;
		/* Older verifiers lose the bound that the branch gave. */
		asm volatile("" : "+r"(length));
		if (length < ETH_HLEN || length > EVENT_CAPTURE ||
		    bpf_skb_load_bytes(skb, 0, e->bytes, length))
			e->captured = 0;
	}
	bpf_ringbuf_submit(e, event_wakeup());
	return 0;
}
