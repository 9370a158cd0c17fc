/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Masquerading by itself, on a device that leads to the world: what comes from
 * the tests' pods is translated unless its destination is excluded, what comes
 * to the node is translated back. skb->mark tells a test run what became of
 * the packet: 0 nothing, 1 translated, otherwise the reason for its drop.
 */
#include "lib/common.h"
#include "lib/drop.h"
#include "lib/nat.h"
#include "lib/packet.h"
#include "lib/parse.h"
#include "lib/parse6.h"

/* 10.66.0.0/16 and fd66::/16. */
#define POD_PREFIX4 bpf_htonl(0x0a420000)
#define POD_MASK4 bpf_htonl(0xffff0000)
#define POD_PREFIX6 bpf_htonl(0xfd660000)
#define POD_MASK6 bpf_htonl(0xffff0000)

#define TRANSLATED 1

/* What the program knows of the packet in the end. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} test_packet SEC(".maps");

static __always_inline bool is_pod(const struct in6 *addr, const bool v6)
{
	if (v6)
		return (addr->w[0] & POD_MASK6) == POD_PREFIX6;
	return (addr->w[0] & POD_MASK4) == POD_PREFIX4;
}

static __always_inline void note(struct __sk_buff *skb, const struct packet *p, __u32 mark)
{
	__u32 zero = 0;

	bpf_map_update_elem(&test_packet, &zero, p, BPF_ANY);
	skb->mark = mark;
}

static __always_inline int out(struct __sk_buff *skb, const bool v6)
{
	struct packet p = { .direction = DIR_EGRESS };
	int ret = parse(skb, &p, NULL, v6);

	if (ret)
		return TC_ACT_OK;
	/* Or an error about a pod's packet, by the node. */
	if (!is_pod(&p.flow_saddr, v6) || nat_excluded(&p.daddr, v6)) {
		note(skb, &p, 0);
		return TC_ACT_OK;
	}
	ret = nat_egress(skb, &p, v6);
	note(skb, &p, ret < 0 ? DROP_REASON(ret) : TRANSLATED);
	return ret < 0 ? TC_ACT_SHOT : TC_ACT_OK;
}

static __always_inline int in(struct __sk_buff *skb, const bool v6)
{
	struct packet p = { .direction = DIR_INGRESS };
	int ret = parse(skb, &p, NULL, v6);

	if (ret)
		return TC_ACT_OK;
	ret = nat_ingress(skb, &p, v6);
	note(skb, &p, ret < 0 ? DROP_REASON(ret) : ret);
	return ret < 0 ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("tc")
int nat_out(struct __sk_buff *skb)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return out(skb, false);
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? out(skb, true) : TC_ACT_OK;
}

SEC("tc")
int nat_in(struct __sk_buff *skb)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return in(skb, false);
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? in(skb, true) : TC_ACT_OK;
}

/*
 * Two runs of this at once, on two CPUs: in each round they wait for each other
 * and then want a port for a flow, with RACE_SAME for the same one. A run with
 * RACE_LATE takes the flow for new, as if its entry was made the moment before.
 */
#define RACE_ROUNDS 64
#define RACE_SECOND 1 /* in the mark: which of the two this run is */
#define RACE_SAME 2
#define RACE_LATE 4
#define RACE_PATIENCE 300

struct race {
	__u32 arrived[2]; /* the round that each of the two has come to, from 1 */
	__u32 port[2][RACE_ROUNDS]; /* what each got, in host order; 0: none */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct race);
} test_race SEC(".maps");

static __always_inline struct race *race_row(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&test_race, &zero);
}

__noinline int race_is_there(__u32 other, __u32 round)
{
	volatile struct race *race = (volatile struct race *)race_row();
	int i;

	if (!race)
		return 1;
	for (i = 0; i < RACE_PATIENCE; i++)
		if (race->arrived[other & 1] >= round)
			return 1;
	return 0;
}

static __always_inline int race_for_port(struct __sk_buff *skb, const struct packet *p, const bool v6)
{
	int port = -1;

	if (!(skb->mark & RACE_LATE))
		port = v6 ? nat_known_port6(p) : nat_known_port4(p);
	if (port < 0)
		port = v6 ? nat_create6(skb, p) : nat_create4(skb, p);
	return port < 0 ? 0 : bpf_ntohs(port);
}

__noinline int race_round(struct __sk_buff *skb, __u32 round)
{
	const __u32 self = skb->mark & RACE_SECOND;
	struct race *race = race_row();
	struct packet p = {
		.flow_saddr.w = { POD_PREFIX4 | bpf_htonl(skb->mark & RACE_SAME ? 1 : 1 + self) },
		.daddr.w = { bpf_htonl(0xc6336407) },
		.sport = bpf_htons(1),
		.dport = bpf_htons(1 + round),
		.protocol = IPPROTO_UDP,
	};
	int i, port;

	if (!race)
		return 0;
	*(volatile __u32 *)&race->arrived[self] = 1 + round;
	for (i = 0; i < RACE_PATIENCE; i++)
		if (skb->mark & RACE_LATE || race_is_there(!self, 1 + round))
			break;
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		port = race_for_port(skb, &p, true);
	else
		port = race_for_port(skb, &p, false);
	if (round < RACE_ROUNDS)
		race->port[self][round] = port;
	return 0;
}

SEC("tc")
int nat_race(struct __sk_buff *skb)
{
	__u32 i;

	for (i = 0; i < RACE_ROUNDS; i++)
		race_round(skb, i);
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
