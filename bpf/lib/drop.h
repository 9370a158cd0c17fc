/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A verdict on its way up the call chain: 0 to go on, negative to drop. A drop
 * holds its reason (bits 0-7), line (8-23) and file (24-30), so that the hot
 * path stores nothing and only drop_packet() takes it apart.
 */
#pragma once

#include "common.h"
#include "drop_reasons.h"
#include "events.h"
#include "metrics.h"
#include "packet.h"
#include "source_files.h"

#define DROP(reason) \
	(-(int)((reason) | ((__u32)__LINE__ << 8) | (source_file_id(__FILE_NAME__) << 24)))

#define DROP_REASON(verdict) ((__u32)(-(verdict)) & 0xff)
#define DROP_LOCATION(verdict) \
	((((__u32)(-(verdict)) >> 8) & 0xffff) | ((((__u32)(-(verdict)) >> 24) & 0x7f) << 16))

#define LOCATION_HERE ((__u32)__LINE__ | source_file_id(__FILE_NAME__) << 16)

/* What stacks say on their link without being asked, and nobody has to hear: it is counted only. */
static __always_inline bool is_chatter(__u32 reason)
{
	return reason == DROP_ARP_IGNORED || reason == DROP_ND_IGNORED;
}

/* The one way for a packet to be dropped: counted, reported, gone. */
__noinline int drop_packet(struct __sk_buff *skb, const struct packet *p, int verdict)
{
	if (!p)
		return TC_ACT_SHOT;
	metrics_count(DROP_REASON(verdict), p->direction, skb->len);
	if (node_flags() & NODE_EVENTS && !is_chatter(DROP_REASON(verdict))) {
		struct event_about about = {
			.location = DROP_LOCATION(verdict),
			.kind = EVENT_DROP,
			.reason = DROP_REASON(verdict),
			.verdict = VERDICT_DENY,
		};

		event_emit(skb, p, &about);
	}
	return TC_ACT_SHOT;
}
