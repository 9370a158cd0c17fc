/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Frames from the least to the largest, and what of them fits into the overlay. */
#include "tests/lib/scenario.h"

#define ROUTE_MTU CONFIG(route_mtu)

/* A UDP packet whose IP length is size. Zeros past what a map holds: the checksum is not affected. */
static __always_inline void datagram(struct frame *f, struct test_context *context, const bool v6,
				     enum host destination, __u32 size)
{
	const __u32 total = ETH_HLEN + size;
	struct frame_layer *udp;

	put_ip(f, v6, POD_A, destination, IPPROTO_UDP);
	udp = &f->layer[1];
	put_udp(f, 5000, 53);
	put_payload(f, 32);
	f->layer[0].end = total;
	udp->end = total;
	finish_lengths(f);
	/* The checksum covers the header and 32 bytes; what is behind them is zero. */
	finish_checksums(f);
	context->flags |= CONTEXT_LENGTH;
	context->length = total;
}

/*
 * A packet of 3000 bytes that the stack will cut into segments with so much
 * payload. (BPF_PROG_TEST_RUN can make no larger one: lengthened packets lose it.)
 */
static __always_inline void segments(struct frame *f, struct test_context *context, const bool v6,
				     enum host destination, __u32 payload)
{
	put_ip(f, v6, POD_A, destination, IPPROTO_UDP);
	put_udp(f, 5000, 53);
	put_payload(f, 3000 - (f->length - ETH_HLEN));
	finish(f);
	context->gso_size = payload;
	context->gso_segs = 3;
}

/* ---- small ---- */

SETUP(no_payload) { add_cluster(); }
PKTGEN(no_payload, from_container, lxc_a)
{
	put_ip(frame, v6, POD_A, POD_B, IPPROTO_UDP);
	put_udp(frame, 5000, 53);
	finish(frame);
}
CHECK(no_payload)
{
	assert_to_pod(lxc_b);
	assert_one_hop_less();
	assert_eq(frame->length, v6 ? 62 : 42);
}
PKTGEN_N(no_payload, 2, from_container, lxc_a)
{
	put_ip(frame, v6, POD_A, POD_B, IPPROTO_TCP);
	put_tcp(frame, 1000, 80, TCP_SYN);
	finish(frame);
}
CHECK_N(no_payload, 2)
{
	assert_to_pod(lxc_b);
	assert_one_hop_less();
}
PKTGEN_N(no_payload, 3, from_container, lxc_a)
{
	put_ip(frame, v6, POD_A, POD_B, echo_protocol(v6));
	put_icmp(frame, v6, v6 ? TYPE6_ECHO : TYPE4_ECHO, 0, 9 << 16);
	finish(frame);
}
CHECK_N(no_payload, 3)
{
	assert_to_pod(lxc_b);
	assert_one_hop_less();
}

/* Padding, as a device adds it, belongs to the frame and not to the packet. */
SETUP(padded) { add_cluster(); }
PKTGEN(padded, from_container, lxc_a)
{
	put_ip(frame, v6, POD_A, POD_B, IPPROTO_UDP);
	put_udp(frame, 5000, 53);
	finish(frame);
	frame->layer[1].end = frame->length;
	put_payload(frame, 22);
}
CHECK(padded)
{
	assert_to_pod(lxc_b);
	assert_one_hop_less();
	assert_eq(flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_B, 53) != NULL, 1);
}

/* ---- large, on this node: whatever comes is passed on whole ---- */

#define LOCAL(name, size)                                                               \
	SETUP(name) { add_cluster(); }                                                  \
	PKTGEN(name, from_container, lxc_a)                                             \
	{                                                                               \
		datagram(frame, context, v6, POD_B, size);                              \
	}                                                                               \
	CHECK(name)                                                                     \
	{                                                                               \
		struct ct_entry *ct = flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_B, 53); \
                                                                                        \
		assert_to_pod(lxc_b);                                                   \
		assert_eq(frame->length, ETH_HLEN + size);                              \
		assert_eq(hops_of(frame, v6), DEFAULT_HOPS - 1);                        \
		test_assert(!layer_checksum(frame, 0));                                 \
		test_require(ct);                                                       \
		assert_eq(ct->bytes[CT_ORIGINAL], ETH_HLEN + size);                     \
		assert_eq(counted_bytes(REASON_FORWARDED, DIR_EGRESS), ETH_HLEN + size); \
		assert_eq(counted_bytes(REASON_FORWARDED, DIR_INGRESS), ETH_HLEN + size); \
	}

LOCAL(local_1500, 1500)
LOCAL(local_9000, 9000)
LOCAL(local_15000, 15000)

/* Longer than its headers say by a byte, or shorter. */
SETUP(jumbo_cut) { add_cluster(); }
PKTGEN(jumbo_cut, from_container, lxc_a)
{
	datagram(frame, context, v6, POD_B, 9000);
	context->length--;
}
CHECK(jumbo_cut) { assert_dropped(DROP_INVALID); }
PKTGEN_N(jumbo_cut, 2, from_container, lxc_a)
{
	datagram(frame, context, v6, POD_B, 9000);
	context->length++;
}
CHECK_N(jumbo_cut, 2) { assert_to_pod(lxc_b); }

/* ---- the overlay ---- */

#define TO_OVERLAY(name, size, outcome)                                                 \
	SETUP(name) { add_cluster(); }                                                  \
	PKTGEN(name, from_container, lxc_a)                                             \
	{                                                                               \
		datagram(frame, context, v6, POD_REMOTE, size);                         \
	}                                                                               \
	CHECK(name)                                                                     \
	{                                                                               \
		outcome;                                                                \
		assert_eq(frame->length, ETH_HLEN + (size));                            \
		/* The flow is known from then on: it takes the short way. */           \
		test_assert(flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_REMOTE, 53));     \
	}                                                                               \
	PKTGEN_N(name, 2, from_container, lxc_a)                                        \
	{                                                                               \
		datagram(frame, context, v6, POD_REMOTE, size);                         \
	}                                                                               \
	CHECK_N(name, 2)                                                                \
	{                                                                               \
		outcome;                                                                \
		assert_eq(hops_of(frame, v6), DEFAULT_HOPS);                            \
	}

TO_OVERLAY(tunnel_fits, ROUTE_MTU, assert_to_tunnel(NODE_OTHER, ID_A))
TO_OVERLAY(tunnel_too_big, ROUTE_MTU + 1, assert_to_stack(ID_A))
TO_OVERLAY(tunnel_jumbo, 9000, assert_to_stack(ID_A))

/*
 * A GSO packet counts by its segments. Those that fit cannot be shown here: a
 * test run's packet has no transport header by which the kernel would measure them.
 */
#define SEGMENTS(name, payload, outcome)                                                \
	SETUP(name) { add_cluster(); }                                                  \
	PKTGEN(name, from_container, lxc_a)                                             \
	{                                                                               \
		segments(frame, context, v6, POD_REMOTE, payload);                      \
	}                                                                               \
	CHECK(name)                                                                     \
	{                                                                               \
		outcome;                                                                \
		assert_eq(frame->length, ETH_HLEN + 3000);                              \
	}

SEGMENTS(segments_too_big, 1448, assert_to_stack(ID_A))

SETUP(segments_local) { add_cluster(); }
PKTGEN(segments_local, from_container, lxc_a)
{
	segments(frame, context, v6, POD_B, 1460);
}
CHECK(segments_local)
{
	assert_to_pod(lxc_b);
	assert_eq(frame->length, ETH_HLEN + 3000);
	assert_one_hop_less();
}

/* ---- the network: what the route has no room for the stack fragments, or refuses ---- */

SETUP(network_fits) { add_cluster(); }
PKTGEN(network_fits, from_container, lxc_a)
{
	datagram(frame, context, v6, WORLD, CONFIG(mtu));
}
CHECK(network_fits) { assert_to_network(); }
PKTGEN_N(network_fits, 2, from_container, lxc_a)
{
	datagram(frame, context, v6, WORLD, CONFIG(mtu) + 1);
}
CHECK_N(network_fits, 2)
{
	assert_to_stack(ID_A);
	assert_eq(hops_of(frame, v6), DEFAULT_HOPS);
}

/* From the tunnel, whole as well. */
SETUP(from_tunnel) { add_cluster(); }
PKTGEN(from_tunnel, from_overlay, vxlan)
{
	datagram(frame, context, v6, POD_B, 9000);
	context->flags |= CONTEXT_TUNNEL;
	context->tunnel_id = ID_POD_REMOTE;
}
CHECK(from_tunnel)
{
	assert_to_pod(lxc_b);
	assert_eq(frame->length, ETH_HLEN + 9000);
}
