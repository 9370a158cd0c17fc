/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Feeds a program under measurement: BPF_PROG_TEST_RUN with a repeat count runs
 * it on what the run before left of the packet, so this one, which is run
 * instead, first puts the packet right and then tail-calls it. Each run gets
 * the next flow of a list. The same way to `nothing` is the price of the
 * feeding.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#define HEAD_BYTES 80

/* What tells a flow's packets from another's: ports, and the last four bytes of one address. */
struct flow {
	__be32 address;
	__be32 ports;
};

struct replay {
	__u64 head[HEAD_BYTES / 8];
	/* Where the flow's fields go, in bytes from the start of the frame. */
	__u32 address_offset;
	__u32 ports_offset;
	__u32 count;
	__u32 cursor;
	/* Not 0: the packet has come through a tunnel, with this VNI. */
	__u32 vni;
	__u32 tunnel_remote;
	__u32 mark;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct replay);
} replay_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 131072);
	__type(key, __u32);
	__type(value, struct flow);
} replay_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} replay_targets SEC(".maps");

static __always_inline int put(struct __sk_buff *skb, __u32 offset, __be32 value)
{
	void *data = (void *)(long)skb->data;
	__be32 *field;

	if (offset > HEAD_BYTES - sizeof(value))
		return -1;
	field = data + offset;
	if ((void *)(field + 1) > (void *)(long)skb->data_end)
		return -1;
	*field = value;
	return 0;
}

static __always_inline int prepare(struct __sk_buff *skb)
{
	struct replay *r = bpf_map_lookup_elem(&replay_state, &(__u32){ 0 });
	const struct flow *flow;
	__u64 *to;

	if (!r)
		return -1;
	if (r->vni) {
		struct bpf_tunnel_key key = { .tunnel_id = r->vni, .remote_ipv4 = r->tunnel_remote };

		/* Each time: it is kept in one place per CPU, and others may run between two packets. */
		if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), 0))
			return -1;
	}
	to = (void *)(long)skb->data;
	if ((void *)to + HEAD_BYTES > (void *)(long)skb->data_end)
		return -1;
#pragma unroll
	for (int i = 0; i < HEAD_BYTES / 8; i++)
		to[i] = r->head[i];
	if (r->cursor >= r->count)
		r->cursor = 0;
	flow = bpf_map_lookup_elem(&replay_flows, &r->cursor);
	if (!flow)
		return -1;
	r->cursor++;
	skb->mark = r->mark;
	return put(skb, r->address_offset, flow->address) ?: put(skb, r->ports_offset, flow->ports);
}

/* A program of its own for each target, so that what is measured and what it is compared with cost the same. */
SEC("tc")
int replay_to_program(struct __sk_buff *skb)
{
	if (!prepare(skb))
		bpf_tail_call_static(skb, &replay_targets, 0);
	return -1;
}

SEC("tc")
int replay_to_nothing(struct __sk_buff *skb)
{
	if (!prepare(skb))
		bpf_tail_call_static(skb, &replay_targets, 1);
	return -1;
}

SEC("tc")
int nothing(struct __sk_buff *skb __attribute__((unused)))
{
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
