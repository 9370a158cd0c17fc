// SPDX-License-Identifier: GPL-2.0-only
/* Programs that count what they see, one map for all of an object: a node's, or somebody else's beside it. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FORBIDDEN_PORT 7

enum counter { PASSED, DROPPED, SEEN_BY_OTHER, COUNTERS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &which);

	if (value)
		__sync_fetch_and_add(value, 1);
}

static __always_inline int is_udp(void *data, void *end, struct udphdr **udp)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);

	*udp = (void *)(ip + 1);
	return (void *)(*udp + 1) <= end && eth->h_proto == bpf_htons(ETH_P_IP) && ip->protocol == IPPROTO_UDP;
}

/* A verdict that is final, as the datapath's are: never TC_ACT_UNSPEC. */
static __always_inline int judge(struct __sk_buff *skb)
{
	struct udphdr *udp;

	if (!is_udp((void *)(long)skb->data, (void *)(long)skb->data_end, &udp))
		return TC_ACT_OK;
	if (udp->dest == bpf_htons(FORBIDDEN_PORT)) {
		count(DROPPED);
		return TC_ACT_SHOT;
	}
	count(PASSED);
	return TC_ACT_OK;
}

SEC("tc")
int from_test(struct __sk_buff *skb)
{
	return judge(skb);
}

SEC("tc")
int to_test(struct __sk_buff *skb)
{
	return judge(skb);
}

/* Somebody else's: it counts and lets the next one decide. */
SEC("tc")
int from_other(struct __sk_buff *skb)
{
	struct udphdr *udp;

	if (is_udp((void *)(long)skb->data, (void *)(long)skb->data_end, &udp))
		count(SEEN_BY_OTHER);
	return TC_ACT_UNSPEC;
}

SEC("xdp")
int xdp_test(struct xdp_md *xdp)
{
	struct udphdr *udp;

	if (!is_udp((void *)(long)xdp->data, (void *)(long)xdp->data_end, &udp))
		return XDP_PASS;
	if (udp->dest == bpf_htons(FORBIDDEN_PORT)) {
		count(DROPPED);
		return XDP_DROP;
	}
	count(PASSED);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
