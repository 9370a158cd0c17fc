/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Policy: every entry of the node in one hash, a subject's row to say which of
 * them are in force and which shapes of entry are worth a lookup.
 */
#pragma once

#include "common.h"
#include "drop.h"
#include "ipcache.h"
#include "packet.h"

#define POLICY_MAX 262144
#define SUBJECTS_MAX 16384
#define BLOCKS_MAX 65536

struct policy_key {
	__u32 instance;
	__u32 identity; /* of the other end, 0: any */
	__u8 direction; /* DIR_* */
	__u8 protocol; /* 0: any, then the port is any too */
	__be16 port; /* the responder's, masked; of ICMP the type */
	__u8 port_prefix; /* leading bits of port that count, 0: any */
	__u8 space; /* a tier and SPACE_* */
	__u8 pad[2];
};
ASSERT_SIZE(struct policy_key, 16);

/*
 * Entries are kept apart by who is asked first, by what stands for the other
 * end, and by whether they count: each combination is a space, searched by itself.
 */
#define TIER_NORMAL 0
#define TIER_ADMIN 1
#define TIER_BASELINE 2
#define TIER_MASK 3
/* The identity is the number of the longest prefix in block4 or block6 that holds the address. */
#define SPACE_BY_ADDRESS 4
/* Of policies in audit mode. */
#define SPACE_AUDIT 8

/* It allows, unless one of these is set. */
#define POLICY_DENY 0x01
#define POLICY_PASS 0x02 /* the tier leaves the packet to the next one */

struct policy_value {
	__u8 flags; /* POLICY_* */
	__u8 pad;
	__be16 proxy_port; /* 0: none */
	__u32 rule_cookie;
	__u32 order; /* the lowest one that covers the packet decides in its tier */
	__u32 pad2;
	__u64 packets; /* that this entry decided: the first of each flow */
	__u64 bytes;
};
ASSERT_SIZE(struct policy_value, 32);

/* Bits of policy_shape: a port prefix length, or any protocol. */
#define SHAPE_PREFIX(n) (1u << (n)) /* 0: any port of a protocol, 1-16: a prefix */
#define SHAPE_PORTS 0x1fffeu
#define SHAPE_ANY_PROTOCOL (1u << 17)

/* What would be denied passes, and is reported. */
#define AUDIT_ALL 1
/* Policies in audit mode would enforce the direction. */
#define AUDIT_ENFORCED 2

/*
 * Which entries a subject has in one direction. Most have none but the normal
 * tier's for identities, which the first members are about.
 */
struct policy_shape {
	__u8 enforced; /* 0: what no entry denies passes */
	__u8 has_deny; /* 0: the first entry found decides */
	__u8 audit; /* AUDIT_* */
	__u8 pad;
	__u32 identity_shapes; /* of entries for one identity */
	__u32 wildcard_shapes; /* of entries for any */
	__u16 spaces; /* bit n: there are entries in space n, which is not 0 */
	__u16 pad2;
	__u32 other_shapes; /* of the entries in all these */
};
ASSERT_SIZE(struct policy_shape, 20);

struct subject {
	__u32 instance;
	__u32 epoch; /* a flow judged in another is judged again */
	__u64 revision; /* of the policy, for events */
	struct policy_shape shape[2]; /* by DIR_* */
};
ASSERT_SIZE(struct subject, 56);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_key);
	__type(value, struct policy_value);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy SEC(".maps");

/* The numbers of prefixes that policies know the other end's address by, whoever has it. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, BLOCKS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ipcache_lpm_key);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} block4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, BLOCKS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ipcache6_lpm_key);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} block6 SEC(".maps");

/* A hash: its elements are replaced as a whole, so a row is read whole. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SUBJECTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct subject);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} subject SEC(".maps");

/*
 * The same rows once more, in an array, which is read in a fifth of the time.
 * Its elements are overwritten in place, so each has room for two: the loader
 * writes the one that is not in force, then turns current, which is one word.
 */
struct subject_versions {
	__u32 current; /* 1 or 2; 0: look in the hash */
	__u32 pad;
	struct subject version[2];
};
ASSERT_SIZE(struct subject_versions, 120);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SUBJECTS_MAX);
	__type(key, __u32);
	__type(value, struct subject_versions);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} subject_array SEC(".maps");

static __always_inline const struct subject *subject_row(__u32 number)
{
	const struct subject_versions *row = bpf_map_lookup_elem(&subject_array, &number);

	if (likely(row)) {
		if (row->current == 1)
			return &row->version[0];
		if (row->current == 2)
			return &row->version[1];
	}
	return bpf_map_lookup_elem(&subject, &number);
}

struct policy_search {
	struct policy_key key;
	struct policy_value *allow; /* the first found */
	struct policy_value *deny;
	__be16 port;
	__u8 has_deny;
};

/* One lookup. Returns whether the search is over. */
static __always_inline bool policy_probe(struct policy_search *s, __u32 identity, __u8 protocol,
					 __u32 prefix)
{
	struct policy_value *v;

	s->key.identity = identity;
	s->key.protocol = protocol;
	s->key.port_prefix = prefix;
	s->key.port = prefix ? s->port & bpf_htons((__u16)(0xffff << (16 - prefix))) : 0;
	v = bpf_map_lookup_elem(&policy, &s->key);
	if (!v)
		return false;
	if (v->flags & POLICY_DENY) {
		s->deny = v;
		return true;
	}
	if (!s->allow)
		s->allow = v;
	return !s->has_deny;
}

/* The ports of one identity or of any, longest prefix first. */
static __always_inline bool policy_probe_ports(struct policy_search *s, __u32 identity,
					       __u8 protocol, __u32 shapes)
{
	__u32 prefix;

	if (shapes & SHAPE_PREFIX(16) && policy_probe(s, identity, protocol, 16))
		return true;
	if (likely(!(shapes & SHAPE_PORTS & ~SHAPE_PREFIX(16))))
		return false;
	for (prefix = 15; prefix >= 1; prefix--)
		if (shapes & SHAPE_PREFIX(prefix) && policy_probe(s, identity, protocol, prefix))
			return true;
	return false;
}

/*
 * Precedence: id/proto/port, ANY/proto/port, id/proto/ANY, ANY/proto/ANY,
 * id/ANY/ANY, ANY/ANY/ANY; a deny among all that cover the packet wins.
 */
static __always_inline void policy_walk(struct policy_search *s, const struct policy_shape *shape,
					__u32 identity, __u8 protocol)
{
	__u32 by_id = shape->identity_shapes;
	__u32 by_any = shape->wildcard_shapes;

	if (by_id & SHAPE_PORTS && policy_probe_ports(s, identity, protocol, by_id))
		return;
	if (by_any & SHAPE_PORTS && policy_probe_ports(s, 0, protocol, by_any))
		return;
	if (by_id & SHAPE_PREFIX(0) && policy_probe(s, identity, protocol, 0))
		return;
	if (by_any & SHAPE_PREFIX(0) && policy_probe(s, 0, protocol, 0))
		return;
	if (by_id & SHAPE_ANY_PROTOCOL && policy_probe(s, identity, 0, 0))
		return;
	if (by_any & SHAPE_ANY_PROTOCOL)
		policy_probe(s, 0, 0, 0);
}

static __always_inline void policy_report(struct __sk_buff *skb, struct packet *p, __u8 reason,
					  __u8 verdict, __u32 location)
{
	struct event_about about = {
		.location = location,
		.kind = EVENT_VERDICT,
		.reason = reason,
		.verdict = verdict,
	};

	if (node_flags() & NODE_EVENTS)
		event_emit(skb, p, &about);
}

/* The verdict by the normal tier's entries for identities: see policy_verdict(). */
__noinline int policy_verdict_plain(struct __sk_buff *skb, struct packet *p,
				    const struct subject *row, __u32 identity, __u32 port)
{
	const struct policy_shape *shape;
	struct policy_search s = {};
	struct policy_value *decided;
	__u32 direction;
	int ret = 0;

	if (!p || !row)
		return DROP(DROP_POLICY_NOT_READY);
	direction = p->direction & 1;
	shape = &row->shape[direction];
	p->policy_revision = row->revision;
	p->rule_cookie = 0;
	if (!shape->enforced && !shape->has_deny)
		return 0;

	s.key.instance = row->instance;
	s.key.direction = direction;
	s.port = port;
	s.has_deny = shape->has_deny;
	policy_walk(&s, shape, identity, p->protocol);

	decided = s.deny ? s.deny : s.allow;
	if (decided) {
		__sync_fetch_and_add(&decided->packets, 1);
		__sync_fetch_and_add(&decided->bytes, skb->len);
		p->rule_cookie = decided->rule_cookie;
		if (s.deny)
			ret = DROP(DROP_POLICY_DENY);
	} else if (shape->enforced) {
		ret = DROP(DROP_POLICY);
	}
	if (unlikely(ret) && shape->audit & AUDIT_ALL) {
		policy_report(skb, p, DROP_REASON(ret), VERDICT_AUDIT, DROP_LOCATION(ret));
		return 0;
	}
	if (!ret && shape->enforced && (p->flags & PACKET_NEW || p->first_verdict))
		policy_report(skb, p, 0, VERDICT_ALLOW, LOCATION_HERE);
	return ret;
}
