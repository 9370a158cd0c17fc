/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The hop that a packet loses, and the checksum that has to follow it; who sees a packet without hops left. */
#include "tests/lib/scenario.h"

/*
 * Chooses the identification so that the header's checksum comes out as
 * wanted: id' = id + check - wanted, in the checksum's own arithmetic.
 */
static __always_inline void force_checksum(struct frame *f, __u16 wanted)
{
	struct iphdr *ip = ipv4_of(f);
	__u32 id = (__u32)bpf_ntohs(ip->id) + bpf_ntohs(ip->check) + (__u16)~wanted;

	id = (id & 0xffff) + (id >> 16);
	ip->id = bpf_htons((id & 0xffff) + (id >> 16));
	finish_checksums(f);
}

/* The checksum grows by 0x0100 with each hop: these are where that carries, or ends in all ones. */
#define CHECKSUM(wanted)                                                                \
	SETUP4(checksum_##wanted) { add_cluster(); }                                    \
	PKTGEN4(checksum_##wanted, from_container, lxc_a)                               \
	{                                                                               \
		make_udp(frame, v6, POD_A, POD_B, 5000, 53);                            \
		force_checksum(frame, 0x##wanted);                                      \
	}                                                                               \
	CHECK4(checksum_##wanted)                                                       \
	{                                                                               \
		assert_eq(bpf_ntohs(ipv4_of(sent)->check), 0x##wanted);                 \
		assert_to_pod(lxc_b);                                                   \
		assert_one_hop_less();                                                  \
	}                                                                               \
	PKTGEN4_N(checksum_##wanted, 2, from_overlay, vxlan)                            \
	{                                                                               \
		context->flags |= CONTEXT_TUNNEL;                                       \
		context->tunnel_id = ID_POD_REMOTE;                                     \
		make_tcp(frame, v6, POD_REMOTE, POD_B, 1000, 80, TCP_SYN);              \
		force_checksum(frame, 0x##wanted);                                      \
	}                                                                               \
	CHECK4_N(checksum_##wanted, 2)                                                  \
	{                                                                               \
		assert_to_pod(lxc_b);                                                   \
		assert_one_hop_less();                                                  \
	}                                                                               \
	PKTGEN4_N(checksum_##wanted, 3, from_container, lxc_a)                          \
	{                                                                               \
		make_udp(frame, v6, POD_A, WORLD, 5000, 53);                            \
		force_checksum(frame, 0x##wanted);                                      \
	}                                                                               \
	CHECK4_N(checksum_##wanted, 3)                                                  \
	{                                                                               \
		assert_to_network();                                                    \
		assert_one_hop_less();                                                  \
	}

CHECKSUM(0001)
CHECKSUM(00ff)
CHECKSUM(0100)
CHECKSUM(7fff)
CHECKSUM(fe00)
CHECKSUM(fefe)
CHECKSUM(feff)
CHECKSUM(ff00)
CHECKSUM(ff01)
CHECKSUM(fffe)

/* A zero is written as such: it stands for the same as all ones. */
CHECKSUM(0000)

SETUP4(checksum_all_ones) { add_cluster(); }
PKTGEN4(checksum_all_ones, from_container, lxc_a)
{
	make_udp(frame, v6, POD_A, POD_B, 5000, 53);
	force_checksum(frame, 0);
	ipv4_of(frame)->check = 0xffff;
}
CHECK4(checksum_all_ones)
{
	test_assert(checksums_hold(sent));
	assert_to_pod(lxc_b);
	assert_one_hop_less();
}

/* Every number of hops that can still be lost. */
#define HOPS(n)                                                                         \
	SETUP(hops_##n) { add_cluster(); }                                              \
	PKTGEN(hops_##n, from_container, lxc_a)                                         \
	{                                                                               \
		make_udp(frame, v6, POD_A, POD_B, 5000, 53);                            \
		if (v6)                                                                 \
			ipv6_of(frame)->hop_limit = n;                                  \
		else                                                                    \
			ipv4_of(frame)->ttl = n;                                        \
		finish_checksums(frame);                                                \
	}                                                                               \
	CHECK(hops_##n)                                                                 \
	{                                                                               \
		assert_to_pod(lxc_b);                                                   \
		assert_one_hop_less();                                                  \
	}

HOPS(2)
HOPS(3)
HOPS(128)
HOPS(255)

/* ---- the last hop: the stack tells the sender ---- */

static __always_inline void set_hops(struct frame *f, const bool v6, __u8 hops)
{
	if (v6)
		ipv6_of(f)->hop_limit = hops;
	else
		ipv4_of(f)->ttl = hops;
	finish_checksums(f);
}

#define SPENT(name, hops, destination)                                                  \
	SETUP(name) { add_cluster(); }                                                  \
	PKTGEN(name, from_container, lxc_a)                                             \
	{                                                                               \
		make_udp(frame, v6, POD_A, destination, 5000, 53);                      \
		set_hops(frame, v6, hops);                                              \
	}                                                                               \
	CHECK(name)                                                                     \
	{                                                                               \
		assert_to_stack(ID_A);                                                  \
		assert_unchanged();                                                     \
	}                                                                               \
	/* So does the flow's next. */                                                  \
	PKTGEN_N(name, 2, from_container, lxc_a)                                        \
	{                                                                               \
		make_udp(frame, v6, POD_A, destination, 5000, 53);                      \
		set_hops(frame, v6, hops);                                              \
	}                                                                               \
	CHECK_N(name, 2) { assert_to_stack(ID_A); }

SPENT(spent_local, 1, POD_B)
SPENT(spent_local_0, 0, POD_B)
SPENT(spent_world, 1, WORLD)
SPENT(spent_world_0, 0, WORLD)
/* To the node itself no hop is lost. */
SPENT(spent_host, 1, NODE)

/* The node's complaint then passes back to the pod, and is about its flow. */
SETUP(told) { add_cluster(); enforce(SUBJECT_A, DIR_INGRESS); }
PKTGEN(told, from_container, lxc_a)
{
	make_udp(frame, v6, POD_A, POD_B, 33434, 53);
	set_hops(frame, v6, 1);
}
PKTGEN_N(told, 2, to_container, lxc_a)
{
	put_icmp_error(frame, v6, ROUTER, POD_A, v6 ? TYPE6_TIME_EXCEEDED : TYPE4_TIME_EXCEEDED, 0, 0);
	put_ip(frame, v6, POD_A, POD_B, IPPROTO_UDP);
	put_udp(frame, 33434, 53);
	finish(frame);
}
CHECK_N(told, 2) { assert_eq(result->action, TC_ACT_OK); }

SETUP(spent_from_tunnel) { add_cluster(); }
PKTGEN(spent_from_tunnel, from_overlay, vxlan)
{
	context->flags |= CONTEXT_TUNNEL;
	context->tunnel_id = ID_POD_REMOTE;
	make_udp(frame, v6, POD_REMOTE, POD_B, 5000, 53);
	set_hops(frame, v6, 1);
}
CHECK(spent_from_tunnel)
{
	assert_to_stack(ID_POD_REMOTE);
	assert_unchanged();
}

/* Into the tunnel a packet goes with the hops that it has: it is the same network at the other end. */
SETUP(into_tunnel) { add_cluster(); }
PKTGEN(into_tunnel, from_container, lxc_a)
{
	make_udp(frame, v6, POD_A, POD_REMOTE, 5000, 53);
	set_hops(frame, v6, 1);
}
CHECK(into_tunnel)
{
	assert_to_tunnel(NODE_OTHER, ID_A);
	assert_unchanged();
}

/* What is passed on is passed on as it is, a wrong checksum too: it is not the datapath's. */
SETUP(wrong_stays_wrong) { add_cluster(); }
PKTGEN(wrong_stays_wrong, from_container, lxc_a)
{
	make_udp(frame, v6, POD_A, POD_B, 5000, 53);
	udp_of(frame)->check ^= 0x5555;
}
CHECK(wrong_stays_wrong)
{
	assert_to_pod(lxc_b);
	test_assert(frames_equal_from(frame, sent, sent->l4));
}

/* The frame is addressed to the pod by the host's side of its link. */
SETUP(addresses) { add_cluster(); }
PKTGEN(addresses, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
CHECK(addresses)
{
	const __u8 pod[ETH_ALEN] = POD_B_MAC, lxc[ETH_ALEN] = LXC_B_MAC;
	const struct ethhdr *eth = ethernet_of(frame);

	assert_to_pod(lxc_b);
	test_assert(!__builtin_memcmp(eth->h_dest, pod, 4));
	test_assert(!__builtin_memcmp(eth->h_source, lxc, 4));
	assert_eq(eth->h_dest[4], pod[4]);
	assert_eq(eth->h_dest[5], pod[5]);
	assert_eq(eth->h_source[4], lxc[4]);
	assert_eq(eth->h_source[5], lxc[5]);
	assert_eq(eth->h_proto, v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP));
	/* And nothing of what the sender's side noted on it. */
	assert_eq(result->mark, 0);
}
