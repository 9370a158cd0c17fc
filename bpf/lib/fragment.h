/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The ports of a datagram's first fragment, for the fragments after it. */
#pragma once

#include "common.h"
#include "packet.h"

#define FRAG_MAX 8192

struct frag4_key {
	__be32 saddr;
	__be32 daddr;
	__be16 id;
	__u8 protocol;
	__u8 pad;
};
ASSERT_SIZE(struct frag4_key, 12);

struct frag6_key {
	struct in6 saddr;
	struct in6 daddr;
	__be32 id;
	__u8 protocol; /* the fragment header's next header */
	__u8 pad[3];
};
ASSERT_SIZE(struct frag6_key, 40);

struct frag_value {
	__be16 sport;
	__be16 dport;
	__u8 flags; /* PACKET_ECHO_REPLY */
	__u8 protocol; /* behind all extension headers */
	__u8 pad[2];
};
ASSERT_SIZE(struct frag_value, 8);

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAG_MAX);
	__type(key, struct frag4_key);
	__type(value, struct frag_value);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} frag4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAG_MAX);
	__type(key, struct frag6_key);
	__type(value, struct frag_value);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} frag6 SEC(".maps");

union frag_key {
	struct frag4_key v4;
	struct frag6_key v6;
};

/* protocol: what the header that has the offset says is next. */
static __always_inline void fragment_key(union frag_key *key, const struct packet *p, __be32 id,
					 __u8 protocol, const bool v6)
{
	if (v6) {
		key->v6.saddr = p->saddr;
		key->v6.daddr = p->daddr;
		key->v6.id = id;
		key->v6.protocol = protocol;
		key->v6.pad[0] = 0;
		key->v6.pad[1] = 0;
		key->v6.pad[2] = 0;
	} else {
		key->v4.saddr = p->saddr.w[0];
		key->v4.daddr = p->daddr.w[0];
		key->v4.id = id;
		key->v4.protocol = protocol;
		key->v4.pad = 0;
	}
}

/* Not for ICMP errors: what they quote is not in their later fragments' key. */
static __always_inline void fragment_note(const struct packet *p, __be32 id, __u8 protocol, const bool v6)
{
	struct frag_value value = {
		.sport = p->sport,
		.dport = p->dport,
		.flags = p->flags & PACKET_ECHO_REPLY,
		.protocol = p->protocol,
	};
	union frag_key key;

	if (p->flags & PACKET_RELATED)
		return;
	fragment_key(&key, p, id, protocol, v6);
	/* A failure shows where it matters: the later fragments are dropped, with their reason. */
	if (v6)
		bpf_map_update_elem(&frag6, &key.v6, &value, BPF_ANY);
	else
		bpf_map_update_elem(&frag4, &key.v4, &value, BPF_ANY);
}

static __always_inline bool fragment_find(struct packet *p, __be32 id, __u8 protocol, const bool v6)
{
	const struct frag_value *value;
	union frag_key key;

	fragment_key(&key, p, id, protocol, v6);
	if (v6)
		value = bpf_map_lookup_elem(&frag6, &key.v6);
	else
		value = bpf_map_lookup_elem(&frag4, &key.v4);
	if (!value)
		return false;
	p->sport = value->sport;
	p->dport = value->dport;
	p->protocol = value->protocol;
	p->flags |= value->flags | PACKET_FRAGMENT;
	return true;
}
