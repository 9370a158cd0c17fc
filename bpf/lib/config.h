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
DECLARE_CONFIG(__u32, host_ifindex, "ifindex of fimbria_host");
DECLARE_CONFIG(__u32, net_ifindex, "ifindex of fimbria_net, the peer of fimbria_host");
DECLARE_CONFIG(__u32, vxlan_ifindex, "ifindex of fimbria_vxlan, 0 without an overlay");
DECLARE_CONFIG(__u32, mtu, "MTU of the underlay in bytes");
DECLARE_CONFIG(__u32, ct_tcp_syn, "seconds a TCP flow lives before its first reply");
DECLARE_CONFIG(__u32, ct_tcp_established, "seconds an established TCP flow lives when idle");
DECLARE_CONFIG(__u32, ct_tcp_closing, "seconds a TCP flow lives after FIN both ways or RST");
DECLARE_CONFIG(__u32, ct_any, "seconds a flow of any other protocol lives when idle");
