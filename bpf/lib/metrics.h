/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets and bytes per reason and direction. */
#pragma once

#include "common.h"
#include "drop_reasons.h"

#define METRICS_DIRECTIONS 4
#define METRICS_ENTRIES (256 * METRICS_DIRECTIONS)

struct metric {
	__u64 packets;
	__u64 bytes;
};
ASSERT_SIZE(struct metric, 16);

/* Index: reason * METRICS_DIRECTIONS + direction. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, METRICS_ENTRIES);
	__type(key, __u32);
	__type(value, struct metric);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} metrics SEC(".maps");

static __always_inline void metrics_count(__u32 reason, __u32 direction, __u32 bytes)
{
	__u32 index = reason * METRICS_DIRECTIONS + direction;
	struct metric *m = bpf_map_lookup_elem(&metrics, &index);

	if (m) {
		m->packets++;
		m->bytes += bytes;
	}
}
