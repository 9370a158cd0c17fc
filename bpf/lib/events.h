/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Reports to the loader: drops and policy verdicts, through one ring buffer. */
#pragma once

#include "common.h"
#include "drop_reasons.h"
#include "metrics.h"
#include "packet.h"

#define EVENT_DROP 1
#define EVENT_VERDICT 2

#define VERDICT_DENY 0
#define VERDICT_ALLOW 1

#define EVENT_FAMILY_NONE 0
#define EVENT_FAMILY_IPV4 4

#define EVENTS_BYTES (1 << 20)

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
	__u8 saddr[16]; /* an IPv4 address fills the first four */
	__u8 daddr[16];
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 family; /* EVENT_FAMILY_* */
	__u8 pad;
};
ASSERT_SIZE(struct event, 88);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_BYTES);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

/* Not inlined, so that BTF has struct event: the loader's layout is checked against it. */
static __noinline void event_fill(struct event *e, const struct __sk_buff *skb,
				  const struct packet *p)
{
	e->time = bpf_ktime_get_ns();
	e->policy_revision = p->policy_revision;
	e->direction = p->direction;
	e->ifindex = skb->ifindex;
	e->endpoint_id = p->endpoint_id;
	e->src_identity = p->src_identity;
	e->dst_identity = p->dst_identity;
	e->rule_cookie = p->rule_cookie;
	e->length = skb->len;
	__builtin_memset(e->saddr, 0, sizeof(e->saddr) + sizeof(e->daddr));
	__builtin_memcpy(e->saddr, &p->saddr, sizeof(p->saddr));
	__builtin_memcpy(e->daddr, &p->daddr, sizeof(p->daddr));
	e->sport = p->flow.sport;
	e->dport = p->flow.dport;
	e->protocol = p->protocol;
	e->tcp_flags = p->tcp_flags;
	e->family = p->saddr || p->daddr ? EVENT_FAMILY_IPV4 : EVENT_FAMILY_NONE;
	e->pad = 0;
}

static __always_inline void event_emit(const struct __sk_buff *skb, const struct packet *p,
				       __u8 kind, __u8 reason, __u8 verdict, __u16 file, __u16 line)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		metrics_count(REASON_EVENT_LOST, p->direction, 0);
		return;
	}
	event_fill(e, skb, p);
	e->kind = kind;
	e->reason = reason;
	e->verdict = verdict;
	e->file = file;
	e->line = line;
	bpf_ringbuf_submit(e, 0);
}
