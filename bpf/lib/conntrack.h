/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows. Both directions of a flow share one entry under a sorted key, so that
 * an established packet costs one lookup whichever way it goes. The entry
 * remembers for each of its two ends, if that end is a local endpoint, what it
 * was judged by; flow.h decides when to judge again.
 */
#pragma once

#include "common.h"
#include "config.h"
#include "packet.h"

#define CT4_MAX 131072

#define NSEC_PER_SEC 1000000000ULL

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct ct_key {
	__be32 addr[2]; /* the smaller (address, port) first */
	__be16 port[2]; /* ICMP echo: the identifier, twice */
	__u8 protocol;
	__u8 requester; /* ICMP echo: 1 + the end that asks, so that pings both ways differ */
	__u16 pad;
};
ASSERT_SIZE(struct ct_key, 16);

/* What one end was judged by: the initiator's egress or the responder's ingress. */
struct ct_side {
	__u32 owner; /* endpoint id, 0: never judged here */
	__u32 subject;
	__u32 epoch;
	__u32 identity; /* of the other end */
	__u32 ipcache_generation; /* if that identity came from the trie, else 0 */
};
ASSERT_SIZE(struct ct_side, 20);

#define CT_SEEN 0x01
#define CT_SEEN_FIN 0x02
#define CT_SEEN_RST 0x04

/* In seen, packets and bytes. */
#define CT_ORIGINAL 0
#define CT_REPLY 1

struct ct_entry {
	__u32 expires; /* CLOCK_MONOTONIC (coarse), seconds */
	__u32 created;
	__u8 origin; /* index in the key of the end that sent first */
	__u8 seen[2]; /* CT_SEEN*, one byte a direction: two CPUs may write at once */
	__u8 pad;
	__u32 flags;
	struct ct_side side[2]; /* by DIR_*: [DIR_EGRESS] is the initiator's */
	/* Counted without a lock: close, not exact, when both directions run at once. */
	__u64 packets[2];
	__u64 bytes[2];
};
ASSERT_SIZE(struct ct_entry, 88);

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CT4_MAX);
	__type(key, struct ct_key);
	__type(value, struct ct_entry);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ct4 SEC(".maps");

static __always_inline __u32 ct_now(void)
{
	return bpf_ktime_get_coarse_ns() / NSEC_PER_SEC;
}

/* Returns the index in the key of the packet's source. */
static __always_inline __u8 ct_key_init(struct ct_key *key, const struct packet *p)
{
	const struct flow *f = &p->flow;
	__u8 source = f->saddr > f->daddr || (f->saddr == f->daddr && f->sport > f->dport);

	if (source) {
		key->addr[0] = f->daddr;
		key->addr[1] = f->saddr;
		key->port[0] = f->dport;
		key->port[1] = f->sport;
	} else {
		key->addr[0] = f->saddr;
		key->addr[1] = f->daddr;
		key->port[0] = f->sport;
		key->port[1] = f->dport;
	}
	key->protocol = p->protocol;
	key->requester = 0;
	key->pad = 0;
	if (p->protocol == IPPROTO_ICMP)
		key->requester = 1 + (p->flags & PACKET_ECHO_REPLY ? !source : source);
	return source;
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
static __always_inline bool ct_restarts(const struct ct_entry *ct, const struct packet *p,
					const bool reply)
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
static __always_inline void ct_update(struct ct_entry *ct, const struct packet *p, const bool reply,
				      __u32 now, __u32 bytes)
{
	__u8 seen = ct->seen[reply] | CT_SEEN;
	__u32 expires;

	if (p->tcp_flags & TCP_FIN)
		seen |= CT_SEEN_FIN;
	if (p->tcp_flags & TCP_RST)
		seen |= CT_SEEN_RST;
	if (seen != ct->seen[reply])
		ct->seen[reply] = seen;
	expires = now + ct_lifetime(ct, p->protocol);
	if (expires != ct->expires)
		ct->expires = expires;
	ct->packets[reply]++;
	ct->bytes[reply] += bytes;
}
