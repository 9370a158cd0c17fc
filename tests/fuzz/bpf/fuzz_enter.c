/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A test run cannot give a packet tunnel metadata, or a VLAN tag where the
 * kernel keeps it, and takes no IP packet without a header. This puts on, and
 * cuts off, what skb->cb asks for and goes on with the program to be tested.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum { CB_PROGRAM, CB_HAS_KEY, CB_VNI, CB_HAS_TAG, CB_LENGTH };

#define ETH_P_8021Q 0x8100

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u32);
} fuzz_programs SEC(".maps");

SEC("tc")
int fuzz_enter(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = { .tunnel_id = skb->cb[CB_VNI], .remote_ipv4 = 0xac1f0002 };
	__u32 program = skb->cb[CB_PROGRAM];

	if (skb->cb[CB_HAS_KEY] && bpf_skb_set_tunnel_key(skb, &key, sizeof(key), 0))
		return TC_ACT_UNSPEC;
	if (skb->cb[CB_HAS_TAG] && bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), 5))
		return TC_ACT_UNSPEC;
	if (skb->cb[CB_LENGTH] && bpf_skb_change_tail(skb, skb->cb[CB_LENGTH], 0))
		return TC_ACT_UNSPEC;
	/* The verifier takes no loop over the context's fields, which is what a compiler makes of stores in a row. */
	*(volatile __u32 *)&skb->cb[CB_PROGRAM] = 0;
	*(volatile __u32 *)&skb->cb[CB_HAS_KEY] = 0;
	*(volatile __u32 *)&skb->cb[CB_VNI] = 0;
	*(volatile __u32 *)&skb->cb[CB_HAS_TAG] = 0;
	*(volatile __u32 *)&skb->cb[CB_LENGTH] = 0;
	bpf_tail_call(skb, &fuzz_programs, program);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
