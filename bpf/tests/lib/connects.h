/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pod A connects to pod B, and what becomes of it. */
#pragma once

#include "tests/lib/scenario.h"

#define PORT 8080 /* 0x1f90 */

#define PASSES assert_to_pod(lxc_b)
#define DENIED assert_dropped(DROP_POLICY)
#define DENIED_BY_RULE assert_dropped(DROP_POLICY_DENY)

/* A connects to B after before and rules have been done. */
#define CONNECTS_AFTER(name, before, outcome, rules)                                    \
	SETUP(name)                                                                     \
	{                                                                               \
		before;                                                                 \
		rules;                                                                  \
	}                                                                               \
	PKTGEN(name, from_container, lxc_a)                                             \
	{                                                                               \
		make_tcp(frame, v6, POD_A, POD_B, 1000, PORT, TCP_SYN);                 \
	}                                                                               \
	CHECK(name)                                                                     \
	{                                                                               \
		outcome;                                                                \
	}
