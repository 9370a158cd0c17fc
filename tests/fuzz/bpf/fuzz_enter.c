/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A test run cannot give a packet tunnel metadata, a queue mapping, or a VLAN
 * tag where the kernel keeps it, and takes no IP packet without a header. This
 * puts on, and cuts off, what skb->cb asks for, calls the program to be tested
 * and leaves the queue mapping, which a test run does not show, in skb->cb.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* What is asked for; CB_TAG and CB_KEY are flags beside the program's place. */
enum { CB_PROGRAM, CB_VNI, CB_LENGTH, CB_QUEUE };
#define CB_KEY 0x100
#define CB_TAG 0x200

#define ETH_P_8021Q 0x8100

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u32);
} fuzz_programs SEC(".maps");

/* The verifier takes no loop over the context's fields, which is what a compiler makes of stores in a row. */
#define STORE(field, value) (*(volatile __u32 *)&(field) = (value))

/* A tail call returns to the caller of the function that it is made in. */
__noinline int fuzz_run(struct __sk_buff *skb, __u32 program)
{
	volatile int untested = -1;

	bpf_tail_call(skb, &fuzz_programs, program);
	return untested;
}

SEC("tc")
int fuzz_enter(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = { .tunnel_id = skb->cb[CB_VNI], .remote_ipv4 = 0xac1f0002 };
	__u32 program = skb->cb[CB_PROGRAM];
	int ret;

	if (program & CB_KEY && bpf_skb_set_tunnel_key(skb, &key, sizeof(key), 0))
		return TC_ACT_UNSPEC;
	if (program & CB_TAG && bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), 5))
		return TC_ACT_UNSPEC;
	if (skb->cb[CB_LENGTH] && bpf_skb_change_tail(skb, skb->cb[CB_LENGTH], 0))
		return TC_ACT_UNSPEC;
	STORE(skb->queue_mapping, skb->cb[CB_QUEUE]);
	STORE(skb->cb[CB_PROGRAM], 0);
	STORE(skb->cb[CB_VNI], 0);
	STORE(skb->cb[CB_LENGTH], 0);
	ret = fuzz_run(skb, program & 0xff);
	STORE(skb->cb[CB_QUEUE], skb->queue_mapping);
	return ret;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
