/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Gives a packet what BPF_PROG_TEST_RUN cannot (a tunnel key, a tag that a device has taken off, a length
 * past its limits), and goes on in the program under test with it.
 */
#include "tests/lib/test.h"

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} test_program SEC(".maps");

#define LAUNCH_FAILED 101

SEC("tc")
int launch(struct __sk_buff *skb)
{
	const struct test_context *context = test_context_row();
	struct bpf_tunnel_key key = {};

	if (!context)
		return LAUNCH_FAILED;
	if (context->flags & CONTEXT_LENGTH && bpf_skb_change_tail(skb, context->length, 0))
		return LAUNCH_FAILED;
	if (context->flags & CONTEXT_VLAN &&
	    bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), context->vlan_tci))
		return LAUNCH_FAILED;
	if (context->flags & CONTEXT_TYPE && bpf_skb_change_type(skb, context->pkt_type))
		return LAUNCH_FAILED;
	if (context->flags & CONTEXT_QUEUE)
		skb->queue_mapping = context->queue_mapping;
	if (context->flags & CONTEXT_TUNNEL) {
		key.tunnel_id = context->tunnel_id;
		/* What is the near end to the setter is the far end to who gets it. */
		key.local_ipv4 = bpf_ntohl(context->tunnel_peer);
		key.tunnel_ttl = 64;
		if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), 0))
			return LAUNCH_FAILED;
	}
	bpf_tail_call(skb, &test_program, 0);
	return LAUNCH_FAILED;
}
