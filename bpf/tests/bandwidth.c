/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A rate spaces an endpoint's packets in time where they leave the node. */
#include "lib/edt.h"
#include "tests/lib/scenario.h"

#define SECOND 1000000000ULL
#define RATE 1000000 /* bytes a second: a packet's bytes are its microseconds */

static __always_inline void limited_a(void)
{
	struct endpoint *row;

	add_cluster();
	row = endpoint_row(SLOT_A);
	if (row)
		row->rate = RATE;
}

/* When A's next packet may leave. */
static __always_inline __u64 *next_departure(void)
{
	__u32 slot = SLOT_A;

	return bpf_map_lookup_elem(&edt_next, &slot);
}

/* By the network or by the overlay, with the slot that from_container left on the packet. */
#define LEAVES(name, n, program, device, slot)                                          \
	PKTGEN_N(name, n, program, device)                                              \
	{                                                                               \
		context->flags |= CONTEXT_QUEUE | CONTEXT_TUNNEL;                       \
		context->queue_mapping = slot;                                          \
		context->tunnel_id = ID_A;                                              \
		context->mark = mark_of_identity(ID_A);                                 \
		make_udp(frame, v6, POD_A, NODE_OTHER, 5000, 53);                       \
	}

#define SPACED(name, program, device)                                                   \
	SETUP(name) { limited_a(); }                                                    \
	/* The first leaves at once, and the next one after its time. */                \
	LEAVES(name, 1, program, device, SLOT_A)                                        \
	CHECK(name)                                                                     \
	{                                                                               \
		__u64 *next = next_departure();                                         \
                                                                                        \
		assert_eq(result->action, TC_ACT_OK);                                   \
		assert_eq(result->tstamp, 0);                                           \
		test_require(next);                                                     \
		assert_ne(*next, 0);                                                    \
		assert_le(*next, bpf_ktime_get_ns() + sent->length * 1000ULL);          \
	}                                                                               \
	/* One for which it is too early is given its time. */                          \
	PKTGEN_N(name, 2, program, device)                                              \
	{                                                                               \
		__u64 *next = next_departure();                                         \
                                                                                        \
		if (next)                                                               \
			*next = bpf_ktime_get_ns() + SECOND;                            \
		context->priority = next ? (__u32)*next : 0;                            \
		context->flags |= CONTEXT_QUEUE | CONTEXT_TUNNEL;                       \
		context->queue_mapping = SLOT_A;                                        \
		context->tunnel_id = ID_A;                                              \
		context->mark = mark_of_identity(ID_A);                                 \
		make_udp(frame, v6, POD_A, NODE_OTHER, 5000, 53);                       \
	}                                                                               \
	CHECK_N(name, 2)                                                                \
	{                                                                               \
		__u64 *next = next_departure();                                         \
                                                                                        \
		assert_eq(result->action, TC_ACT_OK);                                   \
		/* The low half of it was left in the priority. */                     \
		assert_eq((__u32)result->tstamp, result->priority);                     \
		test_require(next);                                                     \
		assert_eq(*next, result->tstamp + sent->length * 1000ULL);              \
	}                                                                               \
	/* One that would have to wait for too long is dropped, and takes no time. */   \
	PKTGEN_N(name, 3, program, device)                                              \
	{                                                                               \
		__u64 *next = next_departure();                                         \
                                                                                        \
		if (next)                                                               \
			*next = bpf_ktime_get_ns() + 60 * SECOND;                       \
		context->flags |= CONTEXT_QUEUE | CONTEXT_TUNNEL;                       \
		context->queue_mapping = SLOT_A;                                        \
		context->tunnel_id = ID_A;                                              \
		context->mark = mark_of_identity(ID_A);                                 \
		make_udp(frame, v6, POD_A, NODE_OTHER, 5000, 53);                       \
	}                                                                               \
	CHECK_N(name, 3) { assert_dropped(DROP_EDT_HORIZON); }

SPACED(by_overlay, to_overlay, vxlan)
SPACED(by_network, to_netdev, nic)

/* Without a rate, and without a slot, there is nothing to wait for. */
SETUP(no_rate) { add_cluster(); }
LEAVES(no_rate, 1, to_overlay, vxlan, SLOT_A)
CHECK(no_rate)
{
	__u64 *next = next_departure();

	assert_eq(result->action, TC_ACT_OK);
	assert_eq(result->tstamp, 0);
	test_require(next);
	assert_eq(*next, 0);
}

SETUP(no_slot) { limited_a(); }
LEAVES(no_slot, 1, to_overlay, vxlan, 0)
CHECK(no_slot)
{
	__u64 *next = next_departure();

	assert_eq(result->action, TC_ACT_OK);
	test_require(next);
	assert_eq(*next, 0);
}

/* Local deliveries take no time from it. */
SETUP(local) { limited_a(); }
PKTGEN(local, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
CHECK(local)
{
	__u64 *next = next_departure();

	assert_to_pod(lxc_b);
	assert_eq(result->tstamp, 0);
	test_require(next);
	assert_eq(*next, 0);
}
