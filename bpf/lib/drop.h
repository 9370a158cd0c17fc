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
#define DROP_LINE(verdict) (((__u32)(-(verdict)) >> 8) & 0xffff)
#define DROP_FILE(verdict) (((__u32)(-(verdict)) >> 24) & 0x7f)

/* The one way for a packet to be dropped: counted, reported, gone. */
__noinline int drop_packet(struct __sk_buff *skb, const struct packet *p, int verdict)
{
	__u32 reason = DROP_REASON(verdict);

	if (!p)
		return TC_ACT_SHOT;
	metrics_count(reason, p->direction, skb->len);
	event_emit(skb, p, EVENT_DROP, reason, VERDICT_DENY, DROP_FILE(verdict), DROP_LINE(verdict));
	return TC_ACT_SHOT;
}
