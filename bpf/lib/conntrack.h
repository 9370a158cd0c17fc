/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows. Both directions of a flow share one entry under a sorted key, so that
 * an established packet costs one lookup whichever way it goes. The entry
 * remembers for each of its two ends, if that end is a local endpoint, what it
 * was judged by and where its packets go; flow.h decides when to look again.
 */
#pragma once

#include "common.h"
#include "config.h"
#include "packet.h"

#define CT_MAX 131072

/* The clock of flows ticks every 2^30 ns: a shift, where seconds need a division. */
#define CT_TICK_SHIFT 30

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/*
 * Where the packets of a local end go. Values from ROUTE_TUNNEL_MIN on are the
 * address of a tunnel endpoint in host order (0.0.0.0/8 has none).
 */
#define ROUTE_UNKNOWN 0
#define ROUTE_LOCAL 1 /* to the local endpoint at the other end */
#define ROUTE_NETWORK 2 /* wherever the node's routes lead */
#define ROUTE_HOST 3 /* the node itself */
#define ROUTE_TUNNEL_MIN (1 << 24)

/* One end: the initiator's with its egress, or the responder's with its ingress. */
struct ct_side {
	/* Generation (low half) and ROUTE_*, in one word that is written at once. */
	__u64 route;
	__u32 generation; /* of the node, when the verdict was last found good; 0: never */
	__u32 owner; /* endpoint id, 0: never judged here */
	__u32 subject;
	__u32 epoch;
	__u32 identity; /* of the other end */
	__u16 slot; /* the owner's */
	__u16 pad;
};
ASSERT_SIZE(struct ct_side, 32);

#define CT_SEEN 0x01
#define CT_SEEN_FIN 0x02
#define CT_SEEN_RST 0x04

/* In seen, packets and bytes. */
#define CT_ORIGINAL 0
#define CT_REPLY 1

struct ct_entry {
	__u32 expires; /* in ticks */
	__u32 created;
	__u8 origin; /* index in the key of the end that sent first */
	__u8 seen[2]; /* CT_SEEN*, one byte a direction: two CPUs may write at once */
	__u8 flags;
	__u32 pad;
	struct ct_side side[2]; /* by DIR_*: [DIR_EGRESS] is the initiator's */
	/* Counted without a lock: close, not exact, when both directions run at once. */
	__u64 packets[2];
	__u64 bytes[2];
};
ASSERT_SIZE(struct ct_entry, 112);

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CT_MAX);
	__type(key, struct ct4_key);
	__type(value, struct ct_entry);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ct4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CT_MAX);
	__type(key, struct ct6_key);
	__type(value, struct ct_entry);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ct6 SEC(".maps");

/*
 * The key of the packet's flow, and an entry in the making: off the stack, which
 * is short, and where older verifiers take no variable offset, and, before 6.2,
 * no key behind a pointer that a global function got.
 */
struct ct_scratch {
	struct ct_entry entry;
	union ct_key key;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ct_scratch);
} ct_fresh SEC(".maps");

static __always_inline struct ct_scratch *ct_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&ct_fresh, &zero);
}

/* 0 or 1, said so that older verifiers know it also of what was spilled. */
static __always_inline __u32 one_bit(__u32 i)
{
	asm volatile("" : "+r"(i));
	return i & 1;
}

static __always_inline struct ct_side *ct_side(struct ct_entry *ct, __u32 direction)
{
	return &ct->side[one_bit(direction)];
}

static __always_inline __u32 ct_now(void)
{
	return bpf_ktime_get_coarse_ns() >> CT_TICK_SHIFT;
}

static __always_inline bool ct_is_source_second(const struct packet *p, const bool v6)
{
	const struct in6 *s = &p->flow_saddr, *d = &p->daddr;

	if (v6) {
		/* Any total order will do. */
		if (s->w[3] != d->w[3])
			return s->w[3] > d->w[3];
		if (s->w[2] != d->w[2])
			return s->w[2] > d->w[2];
		if (s->w[1] != d->w[1])
			return s->w[1] > d->w[1];
	}
	if (s->w[0] != d->w[0])
		return s->w[0] > d->w[0];
	return p->sport > p->dport;
}

/* Fills the key of p's flow; returns the index in it of the packet's source. */
static __always_inline bool ct_key_init(union ct_key *key, const struct packet *p, const bool v6)
{
	const bool second = ct_is_source_second(p, v6);
	const __u8 echo = v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
	__u8 requester = 0;

	if (p->protocol == echo)
		requester = 1 + (p->flags & PACKET_ECHO_REPLY ? !second : second);
	if (v6) {
		key->v6.addr[0] = second ? p->daddr : p->flow_saddr;
		key->v6.addr[1] = second ? p->flow_saddr : p->daddr;
		key->v6.port[0] = second ? p->dport : p->sport;
		key->v6.port[1] = second ? p->sport : p->dport;
		key->v6.protocol = p->protocol;
		key->v6.requester = requester;
		key->v6.pad = 0;
	} else {
		key->v4.addr[0] = second ? p->daddr.w[0] : p->flow_saddr.w[0];
		key->v4.addr[1] = second ? p->flow_saddr.w[0] : p->daddr.w[0];
		key->v4.port[0] = second ? p->dport : p->sport;
		key->v4.port[1] = second ? p->sport : p->dport;
		key->v4.protocol = p->protocol;
		key->v4.requester = requester;
		key->v4.pad = 0;
	}
	return second;
}

static __always_inline struct ct_entry *ct_find(const union ct_key *key, const bool v6)
{
	if (v6)
		return bpf_map_lookup_elem(&ct6, &key->v6);
	return bpf_map_lookup_elem(&ct4, &key->v4);
}

static __always_inline bool ct_closing(const struct ct_entry *ct)
{
	return ((ct->seen[0] | ct->seen[1]) & CT_SEEN_RST) ||
	       (ct->seen[0] & ct->seen[1] & CT_SEEN_FIN);
}

/*
 * Whether the packet starts over rather than continue what the entry is about:
 * a connection attempt after the end of the last, or against its direction.
 */
static __always_inline bool ct_restarts(const struct ct_entry *ct, const struct packet *p, bool reply)
{
	if ((p->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN || p->flags & PACKET_RELATED)
		return false;
	return reply || ct_closing(ct);
}

static __always_inline __u32 ct_lifetime(const struct ct_entry *ct, __u8 protocol)
{
	if (protocol != IPPROTO_TCP)
		return CONFIG(ct_any);
	if (unlikely(ct_closing(ct)))
		return CONFIG(ct_tcp_closing);
	return ct->seen[CT_REPLY] ? CONFIG(ct_tcp_established) : CONFIG(ct_tcp_syn);
}

/* Notes the packet in its flow. Writes only what changes: the line is shared. */
static __always_inline void ct_update(struct ct_entry *ct, const struct packet *p, bool reply,
				      __u32 bytes)
{
	const __u32 i = one_bit(reply);
	__u8 seen = ct->seen[i] | CT_SEEN;
	__u32 expires;

	if (p->tcp_flags & TCP_FIN)
		seen |= CT_SEEN_FIN;
	if (p->tcp_flags & TCP_RST)
		seen |= CT_SEEN_RST;
	if (seen != ct->seen[i])
		ct->seen[i] = seen;
	expires = p->now + ct_lifetime(ct, p->protocol);
	if (expires != ct->expires)
		ct->expires = expires;
	ct->packets[i]++;
	ct->bytes[i] += bytes;
}
