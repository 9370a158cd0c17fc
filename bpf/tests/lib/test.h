/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Tests of the loaded datapath. A test is a row of packets; each packet has a
 * PKTGEN that builds it and says how it gets to which program, and a CHECK that
 * looks at what became of it. SETUP fills the datapath's maps beforehand.
 *
 *	SETUP(syn_is_admitted) { add_pods(v6); }
 *	PKTGEN(syn_is_admitted, from_container, lxc_a) { tcp(frame, ...); }
 *	CHECK(syn_is_admitted) { assert_redirected_to(CONFIG(lxc_b_ifindex)); }
 *
 * Each of these is two BPF programs, one per family, that see it as the constant
 * v6; PKTGEN4, CHECK6 and so on are for one family only. tests/kernel/ctests
 * finds them by their names, which SETUP and the others make.
 */
#pragma once

#include "lib/common.h"
#include "lib/config.h"
#include "lib/events.h"
#include "lib/forward_note.h"
#include "tests/lib/frame.h"

/* The runner's devices: ifindexes in its namespace. */
DECLARE_CONFIG(__u32, lxc_a_ifindex, "device of the pod POD_A");
DECLARE_CONFIG(__u32, lxc_b_ifindex, "device of the pod POD_B");
DECLARE_CONFIG(__u32, nic_ifindex, "the node's device on the underlay");

#define DEVICE_lxc_a CONFIG(lxc_a_ifindex)
#define DEVICE_lxc_b CONFIG(lxc_b_ifindex)
#define DEVICE_vxlan CONFIG(vxlan_ifindex)
#define DEVICE_host CONFIG(host_ifindex)
#define DEVICE_net CONFIG(net_ifindex)
#define DEVICE_nic CONFIG(nic_ifindex)

#define TEST_UNUSED __attribute__((unused))

#define CB_WORDS 5
#define CONTEXT_TUNNEL 1 /* tunnel_id and tunnel_peer are set on the packet */
#define CONTEXT_VLAN 2 /* vlan_tci is set on the packet, as a device does that takes tags off */
#define CONTEXT_LENGTH 4 /* the frame is cut or zero-filled to length before the program sees it */
#define CONTEXT_TYPE 8 /* pkt_type is set */
#define CONTEXT_QUEUE 16 /* queue_mapping is set */

/* Away from the defaults: overlay, host routing, masquerading, no endpoint routes. */
#define VARIANT_NATIVE 1 /* no overlay */
#define VARIANT_ENDPOINT_ROUTES 2
#define VARIANT_STACK_ROUTING 4 /* no host routing */
#define VARIANT_NO_MASQUERADE 8

/*
 * How a packet gets to its program. Zero but for what PKTGEN names. Mirrors of
 * this and the next three: tests/kernel/ctests/layout.py.
 */
struct test_context {
	char program[24];
	__u32 ifindex;
	__u32 ingress_ifindex; /* where it entered the stack, 0: made on the node */
	__u32 mark;
	__u32 priority;
	__u32 cb[CB_WORDS];
	__u32 gso_size;
	__u32 gso_segs;
	__u32 flags; /* CONTEXT_* */
	__u32 tunnel_id;
	__be32 tunnel_peer;
	__u32 vlan_tci;
	__u32 length;
	__u32 pkt_type;
	__u32 repeat; /* runs of the program, 0: one; what a run leaves is the next one's packet */
	__u32 variant; /* VARIANT_*, together: what the datapath is configured with */
	__u32 queue_mapping;
	__u64 tstamp;
};
ASSERT_SIZE(struct test_context, 112);

/* What became of it. */
struct test_result {
	__s32 action; /* TC_ACT_* */
	__u32 mark;
	__u32 priority;
	__u32 cb[CB_WORDS];
	__u64 tstamp;
	__u32 events; /* reported during the run, first in test_events */
	struct forward forward; /* kind 0: no redirect */
	__u32 pad;
};
ASSERT_SIZE(struct test_result, 64);

#define TEST_EVENTS 8
#define TEST_EVENT_BYTES 512

struct test_event {
	__u32 length;
	__u32 pad;
	__u8 data[TEST_EVENT_BYTES];
};
ASSERT_SIZE(struct test_event, 520);

#define TEST_FAILURES 16

#define TEST_TEXT 80

struct test_failure {
	__u64 left;
	__u64 right;
	__u64 line;
	char text[TEST_TEXT]; /* the assertion, as far as it fits */
};
ASSERT_SIZE(struct test_failure, 104);

struct test_report {
	__u32 passed;
	__u32 failed;
	struct test_failure failure[TEST_FAILURES];
};
ASSERT_SIZE(struct test_report, 8 + TEST_FAILURES * 104);

#define TEST_MAP(map_name, map_entries, value_type)           \
	struct {                                               \
		__uint(type, BPF_MAP_TYPE_ARRAY);              \
		__uint(max_entries, map_entries);              \
		__type(key, __u32);                            \
		__type(value, value_type);                     \
		__uint(pinning, LIBBPF_PIN_BY_NAME);           \
	} map_name SEC(".maps")

TEST_MAP(test_context, 1, struct test_context);
TEST_MAP(test_result, 1, struct test_result);
TEST_MAP(test_events, TEST_EVENTS, struct test_event);
TEST_MAP(test_report, 1, struct test_report);
TEST_MAP(test_frames, 2, struct frame);

#define FRAME_SENT 0
#define FRAME_GOT 1

static __always_inline struct frame *test_frame(__u32 which)
{
	return bpf_map_lookup_elem(&test_frames, &which);
}

static __always_inline struct test_context *test_context_row(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&test_context, &zero);
}

static __always_inline const struct test_result *test_result_row(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&test_result, &zero);
}

/* The event that was the nth reported during the run; NULL: there is none. */
static __always_inline const struct event *test_event(__u32 n)
{
	const struct test_event *e = bpf_map_lookup_elem(&test_events, &n);

	return e && e->length == sizeof(struct event) ? (const void *)e->data : NULL;
}

static __noinline TEST_UNUSED int test_note(__u64 left, __u64 right, __u32 line,
					    const char *text, bool holds)
{
	__u32 zero = 0;
	struct test_report *r = bpf_map_lookup_elem(&test_report, &zero);
	struct test_failure *f;

	if (!r)
		return 0;
	if (holds) {
		r->passed++;
		return 1;
	}
	f = &r->failure[r->failed & (TEST_FAILURES - 1)];
	r->failed++;
	f->left = left;
	f->right = right;
	f->line = line;
	bpf_probe_read_kernel_str(f->text, sizeof(f->text), text);
	return 0;
}

/*
 * The check goes on after a failure: the runner reports all of them, by their
 * lines, which therefore have to be in the test's own file.
 */
#define test_compare(a, op, b, text)                                       \
	({                                                                 \
		static const char text_[] = text;                          \
		__u64 left_ = (__u64)(a), right_ = (__u64)(b);             \
		test_note(left_, right_, __LINE__, text_, left_ op right_); \
	})

#define assert_eq(a, b) test_compare(a, ==, b, #a " == " #b)
#define assert_ne(a, b) test_compare(a, !=, b, #a " != " #b)
#define assert_le(a, b) test_compare(a, <=, b, #a " <= " #b)
#define assert_ge(a, b) test_compare(a, >=, b, #a " >= " #b)
#define test_assert(condition) test_compare(!!(condition), ==, 1, #condition)

/* Ends a part that cannot go on without it, a pointer for instance. */
#define test_require(condition)                                                    \
	do {                                                                       \
		static const char text_[] = #condition;                            \
		if (!(condition)) {                                                \
			test_note(0, 1, __LINE__, text_, false);                   \
			return;                                                    \
		}                                                                  \
		test_note(1, 1, __LINE__, text_, true);                            \
	} while (0)

/* What a part returns that ran to its end. */
#define TEST_DONE 100

#define TEST_PART static __always_inline void

#define SETUP_BODY(id) TEST_PART id(const bool v6 TEST_UNUSED)
#define SETUP_PROGRAM(id, name, family)                    \
	SEC("tc")                                           \
	int name(struct __sk_buff *skb TEST_UNUSED)         \
	{                                                   \
		id(family);                                 \
		return TEST_DONE;                           \
	}

#define PKTGEN_BODY(id)                                                                        \
	TEST_PART id(struct frame *frame TEST_UNUSED, struct test_context *context TEST_UNUSED, \
		     const bool v6 TEST_UNUSED)
#define PKTGEN_PROGRAM(id, name, family, under_test, device)                                   \
	SEC("tc")                                                                              \
	int name(struct __sk_buff *skb TEST_UNUSED)                                            \
	{                                                                                      \
		struct test_context *context = test_context_row();                             \
		struct frame *frame = test_frame(FRAME_SENT);                                  \
		if (!context || !frame)                                                        \
			return 0;                                                              \
		__builtin_memcpy(context->program, #under_test, sizeof(#under_test));          \
		context->ifindex = DEVICE_##device;                                            \
		id(frame, context, family);                                                    \
		return TEST_DONE;                                                              \
	}

#define CHECK_BODY(id)                                                                         \
	TEST_PART id(struct frame *frame TEST_UNUSED, struct frame *sent TEST_UNUSED,          \
		     const struct test_result *result TEST_UNUSED, const bool v6 TEST_UNUSED)
#define CHECK_PROGRAM(id, name, family)                                                        \
	SEC("tc")                                                                              \
	int name(struct __sk_buff *skb TEST_UNUSED)                                            \
	{                                                                                      \
		const struct test_result *result = test_result_row();                          \
		struct frame *frame = test_frame(FRAME_GOT), *sent = test_frame(FRAME_SENT);   \
		if (!result || !frame || !sent)                                                \
			return 0;                                                              \
		id(frame, sent, result, family);                                               \
		return TEST_DONE;                                                              \
	}

/* Once, before a test's first packet. */
#define SETUP(test)                                        \
	SETUP_BODY(test##_setup);                           \
	SETUP_PROGRAM(test##_setup, test##__v4__setup, false) \
	SETUP_PROGRAM(test##_setup, test##__v6__setup, true) \
	SETUP_BODY(test##_setup)
#define SETUP4(test)                                       \
	SETUP_BODY(test##_setup4);                          \
	SETUP_PROGRAM(test##_setup4, test##__v4__setup, false) \
	SETUP_BODY(test##_setup4)
#define SETUP6(test)                                       \
	SETUP_BODY(test##_setup6);                          \
	SETUP_PROGRAM(test##_setup6, test##__v6__setup, true) \
	SETUP_BODY(test##_setup6)

/* The test's packet number n, from 1: builds frame, and names the program and the device. */
#define PKTGEN_N(test, n, program, device)                                                 \
	PKTGEN_BODY(test##_pktgen_##n);                                                     \
	PKTGEN_PROGRAM(test##_pktgen_##n, test##__v4__pktgen_##n, false, program, device)   \
	PKTGEN_PROGRAM(test##_pktgen_##n, test##__v6__pktgen_##n, true, program, device)    \
	PKTGEN_BODY(test##_pktgen_##n)
#define PKTGEN4_N(test, n, program, device)                                                \
	PKTGEN_BODY(test##_pktgen4_##n);                                                    \
	PKTGEN_PROGRAM(test##_pktgen4_##n, test##__v4__pktgen_##n, false, program, device)  \
	PKTGEN_BODY(test##_pktgen4_##n)
#define PKTGEN6_N(test, n, program, device)                                                \
	PKTGEN_BODY(test##_pktgen6_##n);                                                    \
	PKTGEN_PROGRAM(test##_pktgen6_##n, test##__v6__pktgen_##n, true, program, device)   \
	PKTGEN_BODY(test##_pktgen6_##n)

/* What became of it: result, the frame as the program left it, and the one that was sent. */
#define CHECK_N(test, n)                                                       \
	CHECK_BODY(test##_check_##n);                                           \
	CHECK_PROGRAM(test##_check_##n, test##__v4__check_##n, false)           \
	CHECK_PROGRAM(test##_check_##n, test##__v6__check_##n, true)            \
	CHECK_BODY(test##_check_##n)
#define CHECK4_N(test, n)                                                      \
	CHECK_BODY(test##_check4_##n);                                          \
	CHECK_PROGRAM(test##_check4_##n, test##__v4__check_##n, false)          \
	CHECK_BODY(test##_check4_##n)
#define CHECK6_N(test, n)                                                      \
	CHECK_BODY(test##_check6_##n);                                          \
	CHECK_PROGRAM(test##_check6_##n, test##__v6__check_##n, true)           \
	CHECK_BODY(test##_check6_##n)

#define PKTGEN(test, program, device) PKTGEN_N(test, 1, program, device)
#define PKTGEN4(test, program, device) PKTGEN4_N(test, 1, program, device)
#define PKTGEN6(test, program, device) PKTGEN6_N(test, 1, program, device)
#define CHECK(test) CHECK_N(test, 1)
#define CHECK4(test) CHECK4_N(test, 1)
#define CHECK6(test) CHECK6_N(test, 1)

char LICENSE[] SEC("license") = "Dual BSD/GPL";
