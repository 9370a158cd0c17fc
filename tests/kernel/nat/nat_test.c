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

char LICENSE[] SEC("license") = "Dual BSD/GPL";
