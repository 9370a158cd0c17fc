/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Endpoints by netkit devices: what is judged once, where redirect_peer is not to be had. */
#include "tests/lib/scenario.h"

static __always_inline void make_netkit(__u32 slot)
{
	struct endpoint *row = endpoint_row(slot);

	if (row)
		row->flags |= ENDPOINT_NETKIT;
}

SETUP(to_local)
{
	add_cluster();
	make_netkit(SLOT_A);
}
PKTGEN(to_local, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
CHECK(to_local)
{
	assert_forward(FORWARD_REDIRECT, DEVICE_lxc_b);
	assert_eq(result->mark, MARK_JUDGED);
	test_assert(flow_of(v6, IPPROTO_UDP, POD_A, 5000, POD_B, 53));
}

/* Whom it goes to is no matter, only where it comes from. */
SETUP(to_netkit)
{
	add_cluster();
	make_netkit(SLOT_B);
}
PKTGEN(to_netkit, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
CHECK(to_netkit) { assert_forward(FORWARD_PEER, DEVICE_lxc_b); }

SETUP(denied)
{
	add_cluster();
	make_netkit(SLOT_A);
	enforce(SUBJECT_B, DIR_INGRESS);
}
PKTGEN(denied, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 5000, 53); }
CHECK(denied) { assert_dropped(DROP_POLICY); }

/* Its policy has been asked already. */
SETUP(judged)
{
	add_cluster();
	enforce(SUBJECT_B, DIR_INGRESS);
}
PKTGEN(judged, to_container, lxc_b)
{
	context->mark = MARK_JUDGED;
	make_udp(frame, v6, POD_A, POD_B, 5000, 53);
}
CHECK(judged) { assert_eq(result->action, TC_ACT_OK); }

/* Answers to the pod take the same way. */
SETUP4(arp)
{
	add_cluster();
	make_netkit(SLOT_A);
}
PKTGEN4(arp, from_container, lxc_a) { make_arp(frame, 1, POD_A, ROUTER); }
CHECK4(arp)
{
	assert_forward(FORWARD_REDIRECT, DEVICE_lxc_a);
	assert_eq(result->mark, MARK_JUDGED);
}
