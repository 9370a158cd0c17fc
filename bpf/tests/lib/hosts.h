/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who takes part in the tests, and with which addresses. Numbers: scenario.h. */
#pragma once

#include "lib/common.h"

enum host {
	HOST_NONE, /* 0.0.0.0 and :: */
	POD_A, /* local, behind lxc_a */
	POD_B, /* local, behind lxc_b */
	POD_FREE, /* an address of this node's pod CIDR that nobody has */
	POD_REMOTE, /* on the other node */
	NODE, /* this node on the underlay */
	ROUTER, /* this node on fimbria_host */
	NODE_OTHER, /* the other node on the underlay */
	ROUTER_OTHER, /* the other node on its fimbria_host */
	WORLD, /* outside */
	WORLD_CIDR, /* outside, in a prefix that the ipcache may know: 203.0.113.0/24, 2001:db8:113::/48 */
	BROADCAST, /* 255.255.255.255 and ff02::1 */
	LINK_LOCAL, /* POD_A's, IPv6 alone */
	SOLICITED_ROUTER, /* the solicited-node group of ROUTER, IPv6 alone */
	LOOPBACK,
};

#define FRAME_SOURCE_MAC { 0x02, 0, 0, 0, 0, 0x0a }
#define FRAME_TARGET_MAC { 0x02, 0, 0, 0, 0, 0x0b }

#define ADDRESS4(a, b, c, d) bpf_htonl((__u32)(a) << 24 | (b) << 16 | (c) << 8 | (d))

static __always_inline __be32 address4(enum host host)
{
	switch (host) {
	case POD_A:
		return ADDRESS4(10, 244, 1, 10);
	case POD_B:
		return ADDRESS4(10, 244, 1, 11);
	case POD_FREE:
		return ADDRESS4(10, 244, 1, 200);
	case POD_REMOTE:
		return ADDRESS4(10, 244, 2, 10);
	case NODE:
		return ADDRESS4(172, 31, 0, 1);
	case ROUTER:
		return ADDRESS4(10, 244, 1, 1);
	case NODE_OTHER:
		return ADDRESS4(172, 31, 0, 2);
	case ROUTER_OTHER:
		return ADDRESS4(10, 244, 2, 1);
	case WORLD:
		return ADDRESS4(198, 51, 100, 7);
	case WORLD_CIDR:
		return ADDRESS4(203, 0, 113, 9);
	case BROADCAST:
		return ADDRESS4(255, 255, 255, 255);
	case LOOPBACK:
		return ADDRESS4(127, 0, 0, 1);
	default:
		return 0;
	}
}

#define ADDRESS6(a, b, c, d)                                                             \
	((struct in6){ { bpf_htonl(a), bpf_htonl(b), bpf_htonl(c), bpf_htonl(d) } })

static __always_inline struct in6 address6(enum host host)
{
	switch (host) {
	case POD_A:
		return ADDRESS6(0xfd000244, 0x00010000, 0, 0x10);
	case POD_B:
		return ADDRESS6(0xfd000244, 0x00010000, 0, 0x11);
	case POD_FREE:
		return ADDRESS6(0xfd000244, 0x00010000, 0, 0x200);
	case POD_REMOTE:
		return ADDRESS6(0xfd000244, 0x00020000, 0, 0x10);
	case NODE:
		return ADDRESS6(0xfd000172, 0x00310000, 0, 1);
	case ROUTER:
		return ADDRESS6(0xfd000244, 0x00010000, 0, 1);
	case NODE_OTHER:
		return ADDRESS6(0xfd000172, 0x00310000, 0, 2);
	case ROUTER_OTHER:
		return ADDRESS6(0xfd000244, 0x00020000, 0, 1);
	case WORLD:
		return ADDRESS6(0x20010db8, 0x00070000, 0, 7);
	case WORLD_CIDR:
		return ADDRESS6(0x20010db8, 0x01130000, 0, 9);
	case BROADCAST:
		return ADDRESS6(0xff020000, 0, 0, 1);
	case LINK_LOCAL:
		return ADDRESS6(0xfe800000, 0, 0x000000ff, 0xfe00000a);
	case SOLICITED_ROUTER:
		return ADDRESS6(0xff020000, 0, 1, 0xff000001);
	case LOOPBACK:
		return ADDRESS6(0, 0, 0, 1);
	default:
		return ADDRESS6(0, 0, 0, 0);
	}
}
