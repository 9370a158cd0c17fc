/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ARP: whatever an endpoint asks for is behind the device that it is attached to. */
#pragma once

#include "common.h"
#include "drop.h"
#include "packet.h"

#define ARP_REQUEST 1
#define ARP_REPLY 2
#define ARP_HARDWARE_ETHERNET 1

struct arp_ipv4 {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__be32 sender;
	__u8 target_mac[ETH_ALEN];
	__be32 target;
} __attribute__((packed));
ASSERT_SIZE(struct arp_ipv4, 28);

/*
 * Turns a request into the reply that names mac. source: the only address that
 * may ask (0: none has any), NULL for any. Returns 0 with the reply in skb, or a DROP().
 */
static __always_inline int arp_answer(struct __sk_buff *skb, struct packet *p, const __u8 *mac,
				      const __be32 *source)
{
	const __u32 need = ETH_HLEN + sizeof(struct arp_ipv4);
	struct arp_ipv4 *arp;
	struct ethhdr *eth;
	__be32 target;

	if (bpf_skb_pull_data(skb, need))
		return DROP(DROP_INVALID);
	eth = (void *)(long)skb->data;
	arp = (void *)(eth + 1);
	if ((void *)(arp + 1) > (void *)(long)skb->data_end)
		return DROP(DROP_INVALID);
	if (arp->hardware != bpf_htons(ARP_HARDWARE_ETHERNET) ||
	    arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_length != ETH_ALEN ||
	    arp->protocol_length != sizeof(__be32))
		return DROP(DROP_INVALID);

	target = arp->target;
	p->family = FAMILY_IPV4;
	p->saddr.w[0] = arp->sender;
	p->daddr.w[0] = target;
	if (arp->operation != bpf_htons(ARP_REQUEST))
		return DROP(DROP_ARP_IGNORED);
	/* 0.0.0.0 asks whether an address is taken (RFC 5227). */
	if (source && arp->sender && arp->sender != *source)
		return DROP(DROP_INVALID_SIP);
	/* Nobody else has the asker's own address, and an answer needs none. */
	if (target == arp->sender || (source && target == *source))
		return DROP(DROP_ARP_IGNORED);

	arp->operation = bpf_htons(ARP_REPLY);
	arp->target = arp->sender;
	arp->sender = target;
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	__builtin_memcpy(arp->sender_mac, mac, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return 0;
}
