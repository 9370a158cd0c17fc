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
	MULTICAST, /* 224.0.0.251 and ff02::fb */
};

#define FRAME_SOURCE_MAC { 0x02, 0, 0, 0, 0, 0x0a }
#define FRAME_TARGET_MAC { 0x02, 0, 0, 0, 0, 0x0b }

#define HOSTS 16

#define ADDRESS4(a, b, c, d) bpf_htonl((__u32)(a) << 24 | (b) << 16 | (c) << 8 | (d))

static const __be32 addresses4[HOSTS] = {
	[POD_A] = ADDRESS4(10, 244, 1, 10),
	[POD_B] = ADDRESS4(10, 244, 1, 11),
	[POD_FREE] = ADDRESS4(10, 244, 1, 200),
	[POD_REMOTE] = ADDRESS4(10, 244, 2, 10),
	[NODE] = ADDRESS4(172, 31, 0, 1),
	[ROUTER] = ADDRESS4(10, 244, 1, 1),
	[NODE_OTHER] = ADDRESS4(172, 31, 0, 2),
	[ROUTER_OTHER] = ADDRESS4(10, 244, 2, 1),
	[WORLD] = ADDRESS4(198, 51, 100, 7),
	[WORLD_CIDR] = ADDRESS4(203, 0, 113, 9),
	[BROADCAST] = ADDRESS4(255, 255, 255, 255),
	[LOOPBACK] = ADDRESS4(127, 0, 0, 1),
	[MULTICAST] = ADDRESS4(224, 0, 0, 251),
};

#define ADDRESS6(a, b, c, d) { { bpf_htonl(a), bpf_htonl(b), bpf_htonl(c), bpf_htonl(d) } }

static const struct in6 addresses6[HOSTS] = {
	[POD_A] = ADDRESS6(0xfd000244, 0x00010000, 0, 0x10),
	[POD_B] = ADDRESS6(0xfd000244, 0x00010000, 0, 0x11),
	[POD_FREE] = ADDRESS6(0xfd000244, 0x00010000, 0, 0x200),
	[POD_REMOTE] = ADDRESS6(0xfd000244, 0x00020000, 0, 0x10),
	[NODE] = ADDRESS6(0xfd000172, 0x00310000, 0, 1),
	[ROUTER] = ADDRESS6(0xfd000244, 0x00010000, 0, 1),
	[NODE_OTHER] = ADDRESS6(0xfd000172, 0x00310000, 0, 2),
	[ROUTER_OTHER] = ADDRESS6(0xfd000244, 0x00020000, 0, 1),
	[WORLD] = ADDRESS6(0x20010db8, 0x00070000, 0, 7),
	[WORLD_CIDR] = ADDRESS6(0x20010db8, 0x01130000, 0, 9),
	[BROADCAST] = ADDRESS6(0xff020000, 0, 0, 1),
	[LINK_LOCAL] = ADDRESS6(0xfe800000, 0, 0x000000ff, 0xfe00000a),
	[SOLICITED_ROUTER] = ADDRESS6(0xff020000, 0, 1, 0xff000001),
	[LOOPBACK] = ADDRESS6(0, 0, 0, 1),
	[MULTICAST] = ADDRESS6(0xff020000, 0, 0, 0xfb),
};

static __always_inline __be32 address4(enum host host)
{
	return addresses4[host & (HOSTS - 1)];
}

static __always_inline struct in6 address6(enum host host)
{
	return addresses6[host & (HOSTS - 1)];
}
