/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What differs per node and not per packet. These land in .rodata, are set
 * before the program is loaded and are constants to the verifier, which
 * removes the branches that they switch off.
 */
#pragma once

#include "common.h"

#define DECLARE_CONFIG(type, name, description) const volatile type config_##name
#define CONFIG(name) config_##name

DECLARE_CONFIG(__be32, node_ipv4, "the node's address on the underlay");
DECLARE_CONFIG(__be32, router_ipv4, "the node's address inside its pod CIDR, on fimbria_host");
DECLARE_CONFIG(struct in6, node_ipv6, "the node's IPv6 address on the underlay, or zero");
DECLARE_CONFIG(struct in6, router_ipv6, "the node's address inside its IPv6 pod CIDR, or zero");
DECLARE_CONFIG(__u32, host_ifindex, "ifindex of fimbria_host");
DECLARE_CONFIG(__u32, net_ifindex, "ifindex of fimbria_net, the peer of fimbria_host");
DECLARE_CONFIG(__u32, vxlan_ifindex, "ifindex of fimbria_vxlan, 0 without an overlay");
DECLARE_CONFIG(__u32, vxlan_port, "UDP port of the overlay");
DECLARE_CONFIG(__u32, mtu, "MTU of the underlay in bytes");
DECLARE_CONFIG(__u32, route_mtu, "largest packet that fits into the overlay, in bytes");
DECLARE_CONFIG(__u32, endpoint_routes, "1: the stack routes to endpoints, whose devices' egress judges");
DECLARE_CONFIG(__u32, host_routing, "1: what leaves the node does so by FIB lookup, past the stack");
DECLARE_CONFIG(__u32, masquerade, "1: pods reach the world with the node's address");
DECLARE_CONFIG(__u32, nat_port_min, "first port that masqueraded flows may be given");
DECLARE_CONFIG(__u32, nat_port_max, "last port that masqueraded flows may be given");
DECLARE_CONFIG(__u32, ct_tcp_syn, "life of a TCP flow before its first reply, in 2^30 ns");
DECLARE_CONFIG(__u32, ct_tcp_established, "life of an idle established TCP flow, in 2^30 ns");
DECLARE_CONFIG(__u32, ct_tcp_closing, "life of a TCP flow after FIN both ways or RST, in 2^30 ns");
DECLARE_CONFIG(__u32, ct_any, "life of an idle flow of any other protocol, in 2^30 ns");
