/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets and bytes per reason and direction. */
#pragma once

#include "common.h"
#include "drop_reasons.h"

#define METRICS_DIRECTIONS 4
#define METRICS_ENTRIES 256

/* One cache line: a packet that counts both ways costs one lookup. */
struct metric {
	__u64 packets[METRICS_DIRECTIONS]; /* by DIR_* */
	__u64 bytes[METRICS_DIRECTIONS];
};
ASSERT_SIZE(struct metric, 64);

/* Index: the reason. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, METRICS_ENTRIES);
	__type(key, __u32);
	__type(value, struct metric);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} metrics SEC(".maps");

static __always_inline void metrics_count(__u32 reason, __u32 direction, __u32 bytes)
{
	struct metric *m = bpf_map_lookup_elem(&metrics, &reason);

	if (m) {
		direction &= METRICS_DIRECTIONS - 1;
		m->packets[direction]++;
		m->bytes[direction] += bytes;
	}
}

/* A packet from one local endpoint to another leaves and arrives. */
static __always_inline void metrics_count_local(__u32 bytes)
{
	__u32 reason = REASON_FORWARDED;
	struct metric *m = bpf_map_lookup_elem(&metrics, &reason);

	if (m) {
		m->packets[DIR_EGRESS]++;
		m->packets[DIR_INGRESS]++;
		m->bytes[DIR_EGRESS] += bytes;
		m->bytes[DIR_INGRESS] += bytes;
	}
}
