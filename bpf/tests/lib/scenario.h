/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What tests have in common: a node with two pods in a cluster of two nodes,
 * rules for them, and what CHECKs ask of a result.
 */
#pragma once

#include "lib/conntrack.h"
#include "lib/drop_reasons.h"
#include "lib/endpoint.h"
#include "lib/events.h"
#include "lib/forward_note.h"
#include "lib/fragment.h"
#include "lib/identity.h"
#include "lib/ipcache.h"
#include "lib/metrics.h"
#include "lib/policy_spaces.h"
#include "tests/lib/hosts.h"
#include "tests/lib/packets.h"
#include "tests/lib/test.h"

#define ID_A 1001
#define ID_B 1002
#define ID_POD_REMOTE 1003
#define ID_CIDR 0xff0054 /* of a prefix outside */

#define SUBJECT_HOST 1
#define SUBJECT_A 2
#define SUBJECT_B 3

#define SLOT_A 2
#define SLOT_B 3

#define ENDPOINT_A 12
#define ENDPOINT_B 13

#define POD_A_MAC { 0x02, 0, 0, 0, 0x01, 0x0a }
#define POD_B_MAC { 0x02, 0, 0, 0, 0x01, 0x0b }
#define LXC_A_MAC { 0x02, 0, 0, 0, 0x02, 0x0a }
#define LXC_B_MAC { 0x02, 0, 0, 0, 0x02, 0x0b }

/* ---- the cluster ---- */

static __always_inline void put_slot(__u32 slot, const struct endpoint *row)
{
	__u32 ifindex = row->ifindex;

	bpf_map_update_elem(&endpoint_slot, &slot, row, BPF_ANY);
	bpf_map_update_elem(&endpoint_index, &ifindex, &slot, BPF_ANY);
	bpf_map_update_elem(&endpoint_dev, &ifindex, &slot, BPF_ANY);
	if (row->ipv4)
		bpf_map_update_elem(&endpoint_ip4, &row->ipv4, &slot, BPF_ANY);
	if (!in6_is_zero(&row->ipv6))
		bpf_map_update_elem(&endpoint_ip6, &row->ipv6, &slot, BPF_ANY);
}

/* Both addresses of a host, as whole addresses. tunnel HOST_NONE: not through the overlay. */
__noinline int add_address(enum host host, __u32 identity, enum host tunnel)
{
	struct ipcache_value value = { .identity = identity, .tunnel = address4(tunnel) };
	struct in6 v6 = address6(host);
	__be32 v4 = address4(host);

	bpf_map_update_elem(&ipcache4, &v4, &value, BPF_ANY);
	bpf_map_update_elem(&ipcache6, &v6, &value, BPF_ANY);
	return 0;
}

/* The prefixes of both of a host's addresses. */
static __always_inline void add_prefix(enum host host, __u32 bits4, __u32 bits6, __u32 identity,
				       enum host tunnel)
{
	struct ipcache_value value = { .identity = identity, .tunnel = address4(tunnel) };
	struct ipcache_lpm_key v4 = { .prefixlen = bits4, .addr = address4(host) };
	struct ipcache6_lpm_key v6 = { .prefixlen = bits6, .addr = address6(host) };

	bpf_map_update_elem(&ipcache4_lpm, &v4, &value, BPF_ANY);
	bpf_map_update_elem(&ipcache6_lpm, &v6, &value, BPF_ANY);
}

static __always_inline struct node_state *node_row(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&node_state, &zero);
}

/* Changes in endpoints, subjects or ipcache count from here on. */
static __always_inline void next_generation(void)
{
	struct node_state *node = node_row();

	if (node)
		node->generation++;
}

/* A subject that enforces nothing. */
__noinline int add_subject(__u32 number)
{
	struct subject_versions row = {
		.current = 1,
		.version[0] = { .instance = number * 100, .epoch = 1, .revision = 7 },
	};

	bpf_map_update_elem(&subject_array, &number, &row, BPF_ANY);
	return 0;
}

/* A subject's row, writable; or NULL. */
static __always_inline struct subject *subject_of(__u32 number)
{
	struct subject_versions *row = bpf_map_lookup_elem(&subject_array, &number);

	return row && row->current == 1 ? &row->version[0] : NULL;
}

__noinline int remove_subject(__u32 number)
{
	struct subject_versions row = {};

	bpf_map_update_elem(&subject_array, &number, &row, BPF_ANY);
	next_generation();
	return 0;
}

/* A pod by its letter, as the names of its constants have it, behind the device of that role. */
#define ADD_POD(function, X, device_ifindex)                        \
	__noinline int function(void)                               \
	{                                                           \
		struct endpoint row = {                             \
			.ifindex = CONFIG(device_ifindex),          \
			.identity = ID_##X,                         \
			.subject = SUBJECT_##X,                     \
			.endpoint_id = ENDPOINT_##X,                \
			.pod_mac = POD_##X##_MAC,                   \
			.host_mac = LXC_##X##_MAC,                  \
			.ipv4 = address4(POD_##X),                  \
			.ipv6 = address6(POD_##X),                  \
		};                                                  \
                                                                    \
		put_slot(SLOT_##X, &row);                           \
		add_subject(SUBJECT_##X);                           \
		add_address(POD_##X, ID_##X, HOST_NONE);            \
		return 0;                                           \
	}

ADD_POD(add_pod_a, A, lxc_a_ifindex)
ADD_POD(add_pod_b, B, lxc_b_ifindex)

/* flags: NODE_*. */
static __always_inline void set_node_flags(__u32 flags)
{
	struct node_state *node = node_row();

	if (node)
		node->flags = flags;
}

/* Both pods, the other node and its pod; no policy; events are read. */
__noinline int add_cluster(void)
{
	struct node_state node = { .generation = 1, .flags = NODE_EVENTS };
	struct endpoint host = { .ifindex = CONFIG(host_ifindex), .identity = ID_HOST };
	__u32 zero = 0, slot = HOST_SLOT;

	bpf_map_update_elem(&node_state, &zero, &node, BPF_ANY);
	bpf_map_update_elem(&endpoint_slot, &slot, &host, BPF_ANY);
	add_pod_a();
	add_pod_b();
	add_address(POD_REMOTE, ID_POD_REMOTE, NODE_OTHER);
	add_address(NODE_OTHER, ID_REMOTE_NODE, HOST_NONE);
	add_address(ROUTER_OTHER, ID_REMOTE_NODE, NODE_OTHER);
	return 0;
}

/* The row in a slot, writable. */
static __always_inline struct endpoint *endpoint_row(__u32 slot)
{
	return bpf_map_lookup_elem(&endpoint_slot, &slot);
}

/* ---- policy ---- */

/* Zero: any. */
struct rule {
	__u32 identity;
	__u8 protocol;
	__u16 port; /* with prefix 0 the whole of it counts; 0 is any then */
	__u8 prefix;
	bool deny;
	__u32 cookie;
	__u8 space; /* a tier and SPACE_*; by address the identity is a prefix's number */
	bool pass;
	__u32 order;
};

/* What no rule allows is denied from here on. */
static __always_inline void enforce(__u32 number, __u32 direction)
{
	struct subject *row = subject_of(number);

	if (row)
		row->shape[direction & 1].enforced = 1;
}

static __always_inline void audit(__u32 number, __u32 direction)
{
	struct subject *row = subject_of(number);

	if (row)
		row->shape[direction & 1].audit |= AUDIT_ALL;
}

/* A policy in audit mode would enforce. */
static __always_inline void try_to_enforce(__u32 number, __u32 direction)
{
	struct subject *row = subject_of(number);

	if (row)
		row->shape[direction & 1].audit |= AUDIT_ENFORCED;
}

/* The prefixes of both of a host's addresses have a number for entries by address. */
__noinline int add_block(enum host host, __u32 bits4, __u32 bits6, __u32 number)
{
	struct ipcache_lpm_key v4 = { .prefixlen = bits4, .addr = address4(host) };
	struct ipcache6_lpm_key v6 = { .prefixlen = bits6, .addr = address6(host) };

	bpf_map_update_elem(&block4, &v4, &number, BPF_ANY);
	bpf_map_update_elem(&block6, &v6, &number, BPF_ANY);
	return 0;
}

/* Flows that were judged are judged again. */
static __always_inline void next_epoch(__u32 number)
{
	struct subject *row = subject_of(number);

	if (row)
		row->epoch++;
	next_generation();
}

/* What of a rule goes into a key; key.instance is left out. */
static __always_inline struct policy_key rule_key(__u32 direction, const struct rule *rule)
{
	return (struct policy_key){
		.identity = rule->identity,
		.direction = direction,
		.protocol = rule->protocol,
		.port = bpf_htons(rule->port),
		.port_prefix = rule->port && !rule->prefix ? 16 : rule->prefix,
		.space = rule->space,
	};
}

__noinline int build_rule(__u32 number, __u32 direction, const struct rule *rule)
{
	struct subject *row = subject_of(number);
	struct policy_value value = {};
	struct policy_key key;
	__u32 bit;

	if (!row || !rule)
		return 0;
	key = rule_key(direction, rule);
	key.instance = row->instance;
	value.flags = (rule->deny ? POLICY_DENY : 0) | (rule->pass ? POLICY_PASS : 0);
	value.rule_cookie = rule->cookie;
	value.order = rule->order;
	bpf_map_update_elem(&policy, &key, &value, BPF_ANY);
	bit = rule->protocol ? SHAPE_PREFIX(key.port_prefix) : SHAPE_ANY_PROTOCOL;
	if (rule->space) {
		row->shape[direction & 1].spaces |= 1 << rule->space;
		row->shape[direction & 1].other_shapes |= bit;
		return 0;
	}
	if (rule->identity)
		row->shape[direction & 1].identity_shapes |= bit;
	else
		row->shape[direction & 1].wildcard_shapes |= bit;
	if (rule->deny)
		row->shape[direction & 1].has_deny = 1;
	return 0;
}

/* An entry, and the bit of its shape. It does not by itself enforce. */
static __always_inline void add_rule(__u32 number, __u32 direction, const struct rule rule)
{
	build_rule(number, direction, &rule);
}

/* Fields that are not named are zero, that is any. */
#pragma clang diagnostic ignored "-Wmissing-field-initializers"
#define RULE(...) ((struct rule){ __VA_ARGS__ })

/* The entry of a rule, with its counters; or NULL. */
static __always_inline const struct policy_value *rule_entry(__u32 number, __u32 direction,
							const struct rule rule)
{
	struct policy_key key = rule_key(direction, &rule);

	key.instance = number * 100;
	return bpf_map_lookup_elem(&policy, &key);
}

/* ---- flows ---- */

static __always_inline __u8 echo_protocol(const bool v6)
{
	return v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
}

/* second: the source is the second of the key's ends. Which one is first is the datapath's affair. */
static __always_inline struct ct_entry *find_flow_as(__u32 ends, __u32 ports, __u32 protocol,
						     const bool second)
{
	const __u32 hosts[2] = { ENDS_SOURCE(ends), ENDS_DESTINATION(ends) };
	const __be16 port[2] = { bpf_htons(ports >> 16), bpf_htons(ports) };
	const bool echo = protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;

	if (ENDS_V6(ends)) {
		struct ct6_key key = {
			.addr = { address6(hosts[second]), address6(hosts[!second]) },
			.port = { port[second], port[!second] },
			.protocol = protocol,
			.requester = echo ? 1 + second : 0,
		};

		return bpf_map_lookup_elem(&ct6, &key);
	} else {
		struct ct4_key key = {
			.addr = { address4(hosts[second]), address4(hosts[!second]) },
			.port = { port[second], port[!second] },
			.protocol = protocol,
			.requester = echo ? 1 + second : 0,
		};

		return bpf_map_lookup_elem(&ct4, &key);
	}
}

static __noinline TEST_UNUSED struct ct_entry *find_flow(__u32 ends, __u32 ports, __u32 protocol)
{
	struct ct_entry *ct = find_flow_as(ends, ports, protocol, false);

	return ct ? ct : find_flow_as(ends, ports, protocol, true);
}

/* The flow that source started, or NULL. Of an echo both ports are the identifier. */
static __always_inline struct ct_entry *flow_of(const bool v6, __u8 protocol, enum host source,
						__u16 sport, enum host destination, __u16 dport)
{
	return find_flow(ENDS(v6, source, destination), PORTS(sport, dport), protocol);
}

/* Makes it as good as over: it expired in the tick before. */
static __always_inline void expire(struct ct_entry *ct)
{
	if (ct)
		ct->expires = ct_now() - 1;
}

/* ---- results ---- */

/* Packets counted for a reason since the packet at hand was sent, all CPUs together. */
__noinline __u64 counted(__u32 reason, __u32 direction)
{
	__u64 sum = 0;
	__u32 cpu;

	for (cpu = 0; cpu < 64; cpu++) {
		const struct metric *m = bpf_map_lookup_percpu_elem(&metrics, &reason, cpu);

		if (!m)
			break;
		sum += m->packets[direction & 3];
	}
	return sum;
}

__noinline __u64 counted_bytes(__u32 reason, __u32 direction)
{
	__u64 sum = 0;
	__u32 cpu;

	for (cpu = 0; cpu < 64; cpu++) {
		const struct metric *m = bpf_map_lookup_percpu_elem(&metrics, &reason, cpu);

		if (!m)
			break;
		sum += m->bytes[direction & 3];
	}
	return sum;
}

__noinline __u64 counted_anyway(__u32 reason)
{
	return counted(reason, DIR_INGRESS) + counted(reason, DIR_EGRESS) +
	       counted(reason, DIR_NONE);
}

/* Dropped, and counted once as that. */
#define assert_dropped(reason)                                              \
	do {                                                                \
		assert_eq(result->action, TC_ACT_SHOT);                     \
		assert_eq(counted_anyway(reason), 1);                       \
		assert_eq(counted_anyway(REASON_FORWARDED), 0);             \
	} while (0)

#define assert_forward(want_kind, want_ifindex)                             \
	do {                                                                \
		assert_eq(result->action, TC_ACT_REDIRECT);                 \
		assert_eq(result->forward.kind, want_kind);                 \
		assert_eq(result->forward.ifindex, want_ifindex);           \
	} while (0)

/* Straight into the namespace of a pod, by the name of its device. */
#define assert_to_pod(device) assert_forward(FORWARD_PEER, DEVICE_##device)

/* Through the overlay to a node, from an identity. */
#define assert_to_tunnel(node, identity)                                    \
	do {                                                                \
		assert_forward(FORWARD_REDIRECT, CONFIG(vxlan_ifindex));    \
		assert_eq(result->forward.vni, identity);                   \
		assert_eq(result->forward.remote, address4(node));          \
	} while (0)

/* On to the node's stack, marked as from an identity. */
#define assert_to_stack(identity)                                           \
	do {                                                                \
		assert_eq(result->action, TC_ACT_OK);                       \
		assert_eq(result->mark, mark_of_identity(identity));        \
	} while (0)

/* Out by the underlay's device. */
#define assert_to_network() assert_forward(FORWARD_NEIGH, CONFIG(nic_ifindex))

/* As it was sent, from the IP header on, but for one hop less; and sound. */
#define assert_one_hop_less()                                               \
	do {                                                                \
		assert_eq(hops_of(frame, v6), hops_of(sent, v6) - 1);       \
		test_assert(checksums_hold(frame));                         \
		assert_eq(frame->length, sent->length);                     \
		test_assert(frames_equal_from(frame, sent, frame->l4));     \
	} while (0)

#define assert_unchanged() test_assert(frames_equal_from(frame, sent, 0))
