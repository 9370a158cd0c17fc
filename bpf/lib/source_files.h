/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Numbers for source files, so that an event can name the line that made it.
 * Append only. Mirror: services/loader/bpf/drop_reasons.py.
 */
#pragma once

#define SOURCE_FILES(X)      \
	X(1, "bpf_lxc.c")     \
	X(2, "bpf_overlay.c") \
	X(3, "bpf_host.c")    \
	X(4, "parse.h")       \
	X(5, "policy.h")      \
	X(6, "flow.h")        \
	X(7, "arp.h")         \
	X(8, "encap.h")       \
	X(9, "deliver.h")     \
	X(10, "identity.h")   \
	X(11, "parse6.h")     \
	X(12, "nd.h")         \
	X(13, "forward.h")    \
	X(14, "nat.h")        \
	X(15, "edt.h")        \
	X(16, "host.h")       \
	X(17, "nat_icmp.h")   \
	X(18, "conntrack.h")  \
	X(19, "receive.h")    \
	X(20, "nat_port.h")   \
	X(21, "nat_rewrite.h") \
	X(22, "policy_spaces.h")

#define SOURCE_FILE_CASE(id, name)           \
	if (!__builtin_strcmp(file, name))    \
		return id;

/* Folded to a constant by the compiler. Unlisted files are 0; a test forbids them. */
static inline __attribute__((always_inline)) unsigned int source_file_id(const char *file)
{
	SOURCE_FILES(SOURCE_FILE_CASE)
	return 0;
}
