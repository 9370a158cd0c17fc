/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Headers that contradict themselves or the frame, by each way into the datapath. */
#include "tests/lib/scenario.h"

/* The same packet for POD_B by each of three ways, changed before it is sent. */
#define BY_EACH_WAY(family, name, build, change, reason)                                \
	SETUP##family(sent_##name) { add_cluster(); }                                   \
	PKTGEN##family(sent_##name, from_container, lxc_a)                              \
	{                                                                               \
		const enum host source = POD_A;                                         \
                                                                                        \
		build;                                                                  \
		change;                                                                 \
	}                                                                               \
	CHECK##family(sent_##name) { assert_dropped(reason); }                          \
	SETUP##family(routed_##name) { add_cluster(); }                                 \
	PKTGEN##family(routed_##name, to_container, lxc_b)                              \
	{                                                                               \
		const enum host source = WORLD;                                         \
                                                                                        \
		context->ingress_ifindex = CONFIG(nic_ifindex);                         \
		build;                                                                  \
		change;                                                                 \
	}                                                                               \
	CHECK##family(routed_##name) { assert_dropped(reason); }                        \
	SETUP##family(tunnelled_##name) { add_cluster(); }                              \
	PKTGEN##family(tunnelled_##name, from_overlay, vxlan)                           \
	{                                                                               \
		const enum host source = POD_REMOTE;                                    \
                                                                                        \
		context->flags |= CONTEXT_TUNNEL;                                       \
		context->tunnel_id = ID_POD_REMOTE;                                     \
		build;                                                                  \
		change;                                                                 \
	}                                                                               \
	CHECK##family(tunnelled_##name) { assert_dropped(reason); }

#define A_DATAGRAM make_udp(frame, v6, source, POD_B, 5000, 53)
#define CUT_TO(bytes)                                                                   \
	context->flags |= CONTEXT_LENGTH;                                               \
	context->length = (bytes)

/* ---- IPv4 headers ---- */

#define WRONG4(name, change) \
	BY_EACH_WAY(4, name, A_DATAGRAM, change; finish_checksums(frame), DROP_INVALID)

WRONG4(version_5, ipv4_of(frame)->version = 5)
WRONG4(version_6, ipv4_of(frame)->version = 6)
WRONG4(version_0, ipv4_of(frame)->version = 0)
WRONG4(ihl_4, ipv4_of(frame)->ihl = 4)
WRONG4(ihl_0, ipv4_of(frame)->ihl = 0)
WRONG4(ihl_beyond_total, ipv4_of(frame)->ihl = 15; ipv4_of(frame)->tot_len = bpf_htons(59))
WRONG4(total_0, ipv4_of(frame)->tot_len = 0)
WRONG4(total_19, ipv4_of(frame)->tot_len = bpf_htons(19))
WRONG4(total_beyond_frame, ipv4_of(frame)->tot_len = bpf_htons(frame->length - 13))
WRONG4(total_65535, ipv4_of(frame)->tot_len = 0xffff)

BY_EACH_WAY(4, cut_in_header, A_DATAGRAM, CUT_TO(14 + 19), DROP_INVALID)
BY_EACH_WAY(4, cut_behind_ethernet, A_DATAGRAM, CUT_TO(14), DROP_INVALID)

/* ---- IPv6 headers ---- */

#define WRONG6(name, change) BY_EACH_WAY(6, name, A_DATAGRAM, change, DROP_INVALID)

WRONG6(version_4, ipv6_of(frame)->version = 4)
WRONG6(version_0, ipv6_of(frame)->version = 0)
WRONG6(version_15, ipv6_of(frame)->version = 15)
WRONG6(payload_beyond_frame, ipv6_of(frame)->payload_len = bpf_htons(frame->length - 53))
WRONG6(payload_65535, ipv6_of(frame)->payload_len = 0xffff)

BY_EACH_WAY(6, cut_in_header, A_DATAGRAM, CUT_TO(14 + 39), DROP_INVALID)
BY_EACH_WAY(6, cut_behind_ethernet, A_DATAGRAM, CUT_TO(14), DROP_INVALID)

/* ---- both ---- */

BY_EACH_WAY(, cut_in_transport, A_DATAGRAM, CUT_TO(frame->l4 + 4), DROP_INVALID)
BY_EACH_WAY(, cut_by_a_byte, A_DATAGRAM, CUT_TO(frame->length - 1), DROP_INVALID)
