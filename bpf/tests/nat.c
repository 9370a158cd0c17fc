/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Masquerading: which packets, under which address and port, and the way back. */
#include "lib/nat_map.h"
#include "tests/lib/scenario.h"

#define PORT_A 5000
#define PORT_FIRST 61000 /* of the range */

/* ---- what the table says ---- */

static __always_inline void flow_key(union nat_key *key, const bool v6, __u8 protocol,
				     enum host source, __u16 sport, enum host destination,
				     __u16 dport, __u8 kind)
{
	struct in6 from, to;

	if (v6) {
		from = address6(source);
		to = address6(destination);
	} else {
		from = (struct in6){ .w = { address4(source) } };
		to = (struct in6){ .w = { address4(destination) } };
	}
	nat_key_init(key, &from, bpf_htons(sport), &to, bpf_htons(dport), protocol, kind, v6);
}

/* The port that A's flow to the world left by; 0: it has none. peer: WORLD's port. */
static __noinline TEST_UNUSED __u32 port_of(__u32 v6, __u32 protocol, __u32 sport, __u32 peer)
{
	const union nat_value *value;
	union nat_key key;

	if (v6) {
		flow_key(&key, true, protocol, POD_A, sport, WORLD, peer, NAT_ORIGINAL);
		value = nat_find(&key, true);
		return value ? bpf_ntohs(value->v6.port) : 0;
	}
	flow_key(&key, false, protocol, POD_A, sport, WORLD, peer, NAT_ORIGINAL);
	value = nat_find(&key, false);
	return value ? bpf_ntohs(value->v4.port) : 0;
}

/* An entry for port of the node towards WORLD's port peer, which is B's. */
static __always_inline void give_to_b(const bool v6, __u8 protocol, __u16 port, __u16 peer)
{
	union nat_value value;
	union nat_key key;
	struct in6 pod;

	flow_key(&key, v6, protocol, WORLD, peer, NODE, port, NAT_REVERSE);
	pod = v6 ? address6(POD_B) : (struct in6){ .w = { address4(POD_B) } };
	nat_value_init(&value, &pod, bpf_htons(7), v6);
	nat_update(&key, &value, v6);
}

static __always_inline bool has_reverse(const bool v6, __u8 protocol, __u16 port, __u16 peer)
{
	union nat_key key;

	flow_key(&key, v6, protocol, WORLD, peer, NODE, port, NAT_REVERSE);
	return nat_find(&key, v6);
}

/* The LRU's doing. */
static __always_inline void forget(const bool v6, __u8 protocol, __u16 port, __u16 peer, __u8 kind)
{
	union nat_key key;

	if (kind == NAT_ORIGINAL)
		flow_key(&key, v6, protocol, POD_A, PORT_A, WORLD, peer, kind);
	else
		flow_key(&key, v6, protocol, WORLD, peer, NODE, port, kind);
	nat_delete(&key, v6);
}

static __always_inline void exclude_world(const bool v6)
{
	struct nat_exclude4_key key4 = { .prefixlen = 24, .addr = address4(WORLD) & bpf_htonl(0xffffff00) };
	struct nat_exclude6_key key6 = { .prefixlen = 48, .addr = address6(WORLD) };
	__u32 value = 1;

	key6.addr.w[1] &= bpf_htonl(0xffff0000);
	key6.addr.w[2] = 0;
	key6.addr.w[3] = 0;
	if (v6)
		bpf_map_update_elem(&nat_exclude6, &key6, &value, BPF_ANY);
	else
		bpf_map_update_elem(&nat_exclude4, &key4, &value, BPF_ANY);
}

/* ---- what the frame says ---- */

static __always_inline bool is_from(struct frame *f, const bool v6, enum host host)
{
	struct in6 want = address6(host);

	return v6 ? !__builtin_memcmp(&ipv6_of(f)->saddr, &want, sizeof(want)) :
		    ipv4_of(f)->saddr == address4(host);
}

static __always_inline bool is_to(struct frame *f, const bool v6, enum host host)
{
	struct in6 want = address6(host);

	return v6 ? !__builtin_memcmp(&ipv6_of(f)->daddr, &want, sizeof(want)) :
		    ipv4_of(f)->daddr == address4(host);
}

static __always_inline __u16 source_port(struct frame *f)
{
	return bpf_ntohs(udp_of(f)->source);
}

static __always_inline __u16 destination_port(struct frame *f)
{
	return bpf_ntohs(udp_of(f)->dest);
}

/* As it was sent, out by the device that it is on. */
#define assert_left_alone()                             \
	do {                                            \
		assert_eq(result->action, TC_ACT_OK);   \
		assert_unchanged();                     \
	} while (0)

#define assert_masqueraded()                                       \
	do {                                                       \
		assert_eq(result->action, TC_ACT_OK);              \
		test_assert(is_from(frame, v6, NODE));             \
		test_assert(is_to(frame, v6, WORLD));              \
		test_assert(checksums_hold(frame));                \
		assert_eq(hops_of(frame, v6), hops_of(sent, v6));  \
	} while (0)

/* ---- there and back ---- */

#define A_ASKS_BY(test, step, make)                                     \
	PKTGEN_N(test, step, from_container, lxc_a) { make; }           \
	CHECK_N(test, step) { assert_ne(result->action, TC_ACT_SHOT); }

SETUP(tcp) { add_cluster(); enforce(SUBJECT_A, DIR_INGRESS); }
A_ASKS_BY(tcp, 1, make_tcp(frame, v6, POD_A, WORLD, PORT_A, 80, TCP_SYN))
PKTGEN_N(tcp, 2, to_netdev, nic) { make_tcp(frame, v6, POD_A, WORLD, PORT_A, 80, TCP_SYN); }
CHECK_N(tcp, 2)
{
	__u16 port = port_of(v6, IPPROTO_TCP, PORT_A, 80);

	assert_masqueraded();
	assert_ge(port, PORT_FIRST);
	assert_eq(source_port(frame), port);
	assert_eq(destination_port(frame), 80);
	test_assert(has_reverse(v6, IPPROTO_TCP, port, 80));
	/* Behind the ports and up to the checksum nothing has changed, nor behind it. */
	test_assert(frames_equal_from(frame, sent, frame->l4 + 18));
}
PKTGEN_N(tcp, 3, from_netdev, nic)
{
	make_tcp(frame, v6, WORLD, NODE, 80, port_of(v6, IPPROTO_TCP, PORT_A, 80), TCP_SYN | TCP_ACK);
}
CHECK_N(tcp, 3)
{
	struct ct_entry *ct = flow_of(v6, IPPROTO_TCP, POD_A, PORT_A, WORLD, 80);

	assert_to_pod(lxc_a);
	test_assert(is_from(frame, v6, WORLD));
	test_assert(is_to(frame, v6, POD_A));
	assert_eq(source_port(frame), 80);
	assert_eq(destination_port(frame), PORT_A);
	test_assert(checksums_hold(frame));
	assert_eq(hops_of(frame, v6), hops_of(sent, v6) - 1);
	test_require(ct);
	assert_eq(ct->packets[CT_REPLY], 1);
}

SETUP(udp) { add_cluster(); enforce(SUBJECT_A, DIR_INGRESS); }
A_ASKS_BY(udp, 1, make_udp(frame, v6, POD_A, WORLD, PORT_A, 53))
PKTGEN_N(udp, 2, to_netdev, nic) { make_udp(frame, v6, POD_A, WORLD, PORT_A, 53); }
CHECK_N(udp, 2)
{
	assert_masqueraded();
	assert_ge(source_port(frame), PORT_FIRST);
	test_assert(frames_equal_from(frame, sent, frame->l4 + 8));
}
PKTGEN_N(udp, 3, from_netdev, nic)
{
	make_udp(frame, v6, WORLD, NODE, 53, port_of(v6, IPPROTO_UDP, PORT_A, 53));
}
CHECK_N(udp, 3)
{
	assert_to_pod(lxc_a);
	test_assert(is_to(frame, v6, POD_A));
	assert_eq(destination_port(frame), PORT_A);
	test_assert(checksums_hold(frame));
}

/* Without a checksum: none is made up on the way. */
SETUP(udp_unsummed) { add_cluster(); }
PKTGEN(udp_unsummed, to_netdev, nic)
{
	make_udp(frame, v6, POD_A, WORLD, PORT_A, 53);
	udp_of(frame)->check = 0;
}
CHECK(udp_unsummed)
{
	assert_eq(result->action, TC_ACT_OK);
	test_assert(is_from(frame, v6, NODE));
	assert_eq(udp_of(frame)->check, 0);
}

SETUP(echo) { add_cluster(); enforce(SUBJECT_A, DIR_INGRESS); }
A_ASKS_BY(echo, 1, make_echo(frame, v6, POD_A, WORLD, 9))
PKTGEN_N(echo, 2, to_netdev, nic) { make_echo(frame, v6, POD_A, WORLD, 9); }
CHECK_N(echo, 2)
{
	assert_masqueraded();
	assert_eq(bpf_ntohs(icmp_of(frame)->id), port_of(v6, echo_protocol(v6), 9, 9));
	assert_ge(bpf_ntohs(icmp_of(frame)->id), PORT_FIRST);
	assert_eq(icmp_of(frame)->sequence, icmp_of(sent)->sequence);
}
PKTGEN_N(echo, 3, from_netdev, nic)
{
	make_echo_reply(frame, v6, WORLD, NODE, port_of(v6, echo_protocol(v6), 9, 9));
}
CHECK_N(echo, 3)
{
	assert_to_pod(lxc_a);
	test_assert(is_to(frame, v6, POD_A));
	assert_eq(bpf_ntohs(icmp_of(frame)->id), 9);
	test_assert(checksums_hold(frame));
}
/* Who pings the node, by the same identifier, gets the node's answer. */
PKTGEN_N(echo, 4, from_netdev, nic)
{
	make_echo(frame, v6, WORLD, NODE, port_of(v6, echo_protocol(v6), 9, 9));
}
CHECK_N(echo, 4) { assert_left_alone(); }

SETUP(sctp) { add_cluster(); enforce(SUBJECT_A, DIR_INGRESS); }
A_ASKS_BY(sctp, 1, make_sctp(frame, v6, POD_A, WORLD, PORT_A, 80, 1))
PKTGEN_N(sctp, 2, to_netdev, nic) { make_sctp(frame, v6, POD_A, WORLD, PORT_A, 80, 1); }
CHECK_N(sctp, 2)
{
	assert_masqueraded();
	test_assert(frames_equal_from(frame, sent, frame->l4));
}
PKTGEN_N(sctp, 3, from_netdev, nic) { make_sctp(frame, v6, WORLD, NODE, 80, PORT_A, 2); }
CHECK_N(sctp, 3)
{
	assert_to_pod(lxc_a);
	test_assert(is_to(frame, v6, POD_A));
	test_assert(frames_equal_from(frame, sent, frame->l4));
}

/* ---- ports ---- */

SETUP(port_kept) { add_cluster(); }
PKTGEN(port_kept, to_netdev, nic) { make_udp(frame, v6, POD_A, WORLD, 61234, 53); }
CHECK(port_kept)
{
	assert_masqueraded();
	assert_eq(source_port(frame), 61234);
}

SETUP(port_taken)
{
	add_cluster();
	give_to_b(v6, IPPROTO_UDP, 61234, 53);
}
PKTGEN(port_taken, to_netdev, nic) { make_udp(frame, v6, POD_A, WORLD, 61234, 53); }
CHECK(port_taken)
{
	assert_masqueraded();
	assert_ne(source_port(frame), 61234);
	assert_ge(source_port(frame), PORT_FIRST);
}
/* B's is still B's. */
PKTGEN_N(port_taken, 2, from_netdev, nic) { make_udp(frame, v6, WORLD, NODE, 53, 61234); }
CHECK_N(port_taken, 2) { test_assert(is_to(frame, v6, POD_B)); }

SETUP(sctp_port_taken)
{
	add_cluster();
	give_to_b(v6, IPPROTO_SCTP, PORT_A, 80);
}
PKTGEN(sctp_port_taken, to_netdev, nic) { make_sctp(frame, v6, POD_A, WORLD, PORT_A, 80, 1); }
CHECK(sctp_port_taken) { assert_dropped(DROP_NAT_NO_MAPPING); }

SETUP(reverse_lost) { add_cluster(); }
PKTGEN(reverse_lost, to_netdev, nic) { make_udp(frame, v6, POD_A, WORLD, PORT_A, 53); }
PKTGEN_N(reverse_lost, 2, to_netdev, nic)
{
	forget(v6, IPPROTO_UDP, port_of(v6, IPPROTO_UDP, PORT_A, 53), 53, NAT_REVERSE);
	make_udp(frame, v6, POD_A, WORLD, PORT_A, 53);
}
CHECK_N(reverse_lost, 2)
{
	__u16 port = port_of(v6, IPPROTO_UDP, PORT_A, 53);

	assert_masqueraded();
	assert_eq(source_port(frame), port);
	test_assert(has_reverse(v6, IPPROTO_UDP, port, 53));
}

SETUP(original_lost) { add_cluster(); }
PKTGEN(original_lost, to_netdev, nic) { make_udp(frame, v6, POD_A, WORLD, PORT_A, 53); }
PKTGEN_N(original_lost, 2, to_netdev, nic)
{
	/* The mark has no part in this: it carries what the table is about to forget. */
	context->mark = port_of(v6, IPPROTO_UDP, PORT_A, 53) << 16;
	forget(v6, IPPROTO_UDP, 0, 53, NAT_ORIGINAL);
	make_udp(frame, v6, POD_A, WORLD, PORT_A, 53);
}
CHECK_N(original_lost, 2)
{
	assert_masqueraded();
	assert_eq(source_port(frame), result->mark >> 16);
	assert_eq(port_of(v6, IPPROTO_UDP, PORT_A, 53), result->mark >> 16);
}

/* ---- what keeps its address ---- */

SETUP(excluded)
{
	add_cluster();
	exclude_world(v6);
}
PKTGEN(excluded, to_netdev, nic) { make_udp(frame, v6, POD_A, WORLD, PORT_A, 53); }
CHECK(excluded) { assert_left_alone(); }
PKTGEN_N(excluded, 2, to_netdev, nic) { make_udp(frame, v6, POD_A, WORLD_CIDR, PORT_A, 53); }
CHECK_N(excluded, 2) { test_assert(is_from(frame, v6, NODE)); }

SETUP(switched_off) { add_cluster(); }
PKTGEN(switched_off, to_netdev, nic)
{
	context->variant = VARIANT_NO_MASQUERADE;
	make_udp(frame, v6, POD_A, WORLD, PORT_A, 53);
}
CHECK(switched_off) { assert_left_alone(); }

SETUP(not_a_pod) { add_cluster(); }
PKTGEN(not_a_pod, to_netdev, nic) { make_udp(frame, v6, NODE, WORLD, PORT_A, 53); }
CHECK(not_a_pod) { assert_left_alone(); }

/* Pods of other nodes, where there is no overlay to them. */
SETUP(pod_elsewhere) { add_cluster(); }
PKTGEN(pod_elsewhere, to_netdev, nic)
{
	context->variant = VARIANT_NATIVE;
	make_udp(frame, v6, POD_A, POD_REMOTE, PORT_A, 53);
}
CHECK(pod_elsewhere) { assert_left_alone(); }

/* What answers somebody who reached the pod by its own address. */
SETUP(answer) { add_cluster(); }
PKTGEN(answer, from_netdev, nic) { make_tcp(frame, v6, WORLD, POD_A, 40000, 80, TCP_SYN); }
CHECK(answer) { assert_to_pod(lxc_a); }
PKTGEN_N(answer, 2, to_netdev, nic)
{
	make_tcp(frame, v6, POD_A, WORLD, 80, 40000, TCP_SYN | TCP_ACK);
}
CHECK_N(answer, 2) { assert_left_alone(); }

SETUP(echo_answer) { add_cluster(); }
PKTGEN(echo_answer, to_netdev, nic) { make_echo_reply(frame, v6, POD_A, WORLD, 9); }
CHECK(echo_answer) { assert_dropped(DROP_NAT_NO_MAPPING); }

/* Nobody asked for this. */
SETUP(unasked) { add_cluster(); }
PKTGEN(unasked, from_netdev, nic) { make_udp(frame, v6, WORLD, NODE, 53, 61234); }
CHECK(unasked) { assert_left_alone(); }

/* ---- ICMP errors ---- */

static __always_inline void put_error(struct frame *f, const bool v6, enum host reporter, enum host to)
{
	put_icmp_error(f, v6, reporter, to, v6 ? TYPE6_UNREACHABLE : TYPE4_UNREACHABLE, v6 ? 4 : 3, 0);
}

/* A datagram in full, as the quote of an error. */
static __always_inline void quote_udp(struct frame *f, const bool v6, enum host source, __u16 sport,
				      enum host destination, __u16 dport)
{
	put_ip(f, v6, source, destination, IPPROTO_UDP);
	put_udp(f, sport, dport);
	put_payload(f, DEFAULT_PAYLOAD);
	finish(f);
}

/* The offset in the frame of the quoted IP header. */
#define QUOTE(f) ((f)->l4 + 8)

SETUP(error_in) { add_cluster(); enforce(SUBJECT_A, DIR_INGRESS); }
A_ASKS_BY(error_in, 1, make_udp(frame, v6, POD_A, WORLD, PORT_A, 53))
PKTGEN_N(error_in, 2, to_netdev, nic) { make_udp(frame, v6, POD_A, WORLD, PORT_A, 53); }
PKTGEN_N(error_in, 3, from_netdev, nic)
{
	put_error(frame, v6, WORLD_CIDR, NODE);
	quote_udp(frame, v6, NODE, port_of(v6, IPPROTO_UDP, PORT_A, 53), WORLD, 53);
}
CHECK_N(error_in, 3)
{
	const __u32 l4 = QUOTE(frame) + (v6 ? 40 : 20);
	struct udphdr *udp = frame_at(frame, l4);

	assert_to_pod(lxc_a);
	test_assert(is_from(frame, v6, WORLD_CIDR));
	test_assert(is_to(frame, v6, POD_A));
	/* The quote is A's datagram, its checksums among the others. */
	assert_eq(bpf_ntohs(udp->source), PORT_A);
	assert_eq(bpf_ntohs(udp->dest), 53);
	test_assert(checksums_hold(frame));
	test_assert(frames_equal_from(frame, sent, l4 + 8));
}

SETUP(error_out) { add_cluster(); }
A_ASKS_BY(error_out, 1, make_udp(frame, v6, POD_A, WORLD, PORT_A, 53))
PKTGEN_N(error_out, 2, to_netdev, nic) { make_udp(frame, v6, POD_A, WORLD, PORT_A, 53); }
PKTGEN_N(error_out, 3, to_netdev, nic)
{
	put_error(frame, v6, POD_A, WORLD);
	quote_udp(frame, v6, WORLD, 53, POD_A, PORT_A);
}
CHECK_N(error_out, 3)
{
	const __u32 l4 = QUOTE(frame) + (v6 ? 40 : 20);
	struct udphdr *udp = frame_at(frame, l4);

	assert_eq(result->action, TC_ACT_OK);
	test_assert(is_from(frame, v6, NODE));
	assert_eq(bpf_ntohs(udp->dest), port_of(v6, IPPROTO_UDP, PORT_A, 53));
	test_assert(checksums_hold(frame));
	test_assert(frames_equal_from(frame, sent, l4 + 8));
}

SETUP(error_unasked) { add_cluster(); }
PKTGEN(error_unasked, from_netdev, nic)
{
	put_error(frame, v6, WORLD_CIDR, NODE);
	quote_udp(frame, v6, NODE, 61234, WORLD, 53);
}
CHECK(error_unasked) { assert_left_alone(); }

/* ---- fragments ---- */

static __always_inline void make_first(struct frame *f, const bool v6, enum host source,
				       enum host destination, __u16 sport, __u16 dport)
{
	put_ip_fragment(f, v6, source, destination, IPPROTO_UDP, FRAGMENT_MORE, 77);
	put_udp(f, sport, dport);
	put_payload(f, 16);
	finish(f);
}

static __always_inline void make_later(struct frame *f, const bool v6, enum host source,
				       enum host destination)
{
	put_ip_fragment(f, v6, source, destination, IPPROTO_UDP, 3, 77);
	put_payload(f, 11);
	finish(f);
}

SETUP(fragments) { add_cluster(); enforce(SUBJECT_A, DIR_INGRESS); }
A_ASKS_BY(fragments, 1, make_first(frame, v6, POD_A, WORLD, PORT_A, 53))
PKTGEN_N(fragments, 2, to_netdev, nic) { make_first(frame, v6, POD_A, WORLD, PORT_A, 53); }
CHECK_N(fragments, 2)
{
	assert_masqueraded();
	assert_eq(source_port(frame), port_of(v6, IPPROTO_UDP, PORT_A, 53));
}
PKTGEN_N(fragments, 3, to_netdev, nic) { make_later(frame, v6, POD_A, WORLD); }
CHECK_N(fragments, 3)
{
	assert_masqueraded();
	test_assert(frames_equal_from(frame, sent, frame->l4));
}
PKTGEN_N(fragments, 4, from_netdev, nic)
{
	make_first(frame, v6, WORLD, NODE, 53, port_of(v6, IPPROTO_UDP, PORT_A, 53));
}
CHECK_N(fragments, 4)
{
	assert_to_pod(lxc_a);
	test_assert(is_to(frame, v6, POD_A));
	assert_eq(destination_port(frame), PORT_A);
}
PKTGEN_N(fragments, 5, from_netdev, nic) { make_later(frame, v6, WORLD, NODE); }
CHECK_N(fragments, 5)
{
	assert_to_pod(lxc_a);
	test_assert(is_to(frame, v6, POD_A));
	test_assert(frames_equal_from(frame, sent, frame->l4));
}
