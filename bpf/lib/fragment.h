/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The ports of a datagram's first fragment, for the fragments after it. */
#pragma once

#include "common.h"
#include "packet.h"

#define FRAG4_MAX 8192

struct frag_key {
	__be32 saddr;
	__be32 daddr;
	__be16 id;
	__u8 protocol;
	__u8 pad;
};
ASSERT_SIZE(struct frag_key, 12);

struct frag_value {
	__be16 sport;
	__be16 dport;
	__u8 flags; /* PACKET_ECHO_REPLY */
	__u8 pad[3];
};
ASSERT_SIZE(struct frag_value, 8);

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAG4_MAX);
	__type(key, struct frag_key);
	__type(value, struct frag_value);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} frag4 SEC(".maps");

static __always_inline void fragment_key(struct frag_key *key, const struct packet *p, __be16 id)
{
	key->saddr = p->saddr;
	key->daddr = p->daddr;
	key->id = id;
	key->protocol = p->protocol;
	key->pad = 0;
}

/* Not for ICMP errors: what they quote is not in their later fragments' key. */
static __always_inline void fragment_note(const struct packet *p, __be16 id)
{
	struct frag_value value = {
		.sport = p->flow.sport,
		.dport = p->flow.dport,
		.flags = p->flags & PACKET_ECHO_REPLY,
	};
	struct frag_key key;

	if (p->flags & PACKET_RELATED)
		return;
	fragment_key(&key, p, id);
	/* A failure shows where it matters: the later fragments are dropped, with their reason. */
	bpf_map_update_elem(&frag4, &key, &value, BPF_ANY);
}

static __always_inline bool fragment_find(struct packet *p, __be16 id)
{
	const struct frag_value *value;
	struct frag_key key;

	fragment_key(&key, p, id);
	value = bpf_map_lookup_elem(&frag4, &key);
	if (!value)
		return false;
	p->flow.sport = value->sport;
	p->flow.dport = value->dport;
	p->flags |= value->flags | PACKET_FRAGMENT;
	return true;
}
