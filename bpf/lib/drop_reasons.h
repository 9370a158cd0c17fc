/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Reasons for a drop, in the metrics map and in events.
 *
 * Append only: a number is never reused. Where the meaning is Cilium's the
 * number is Cilium's too (bpf/lib/drop_reasons.h there); our own start at 220.
 * Mirror: services/loader/bpf/drop_reasons.py, checked by
 * tests/unit/bpf/test_mirrors.py.
 */
#pragma once

#define REASON_FORWARDED 0

#define DROP_INVALID_SIP 132       /* Invalid source ip */
#define DROP_POLICY 133            /* Policy denied */
#define DROP_INVALID 134           /* Invalid packet */
#define DROP_CT_INVALID_HDR 135    /* CT: Truncated or invalid header */
#define DROP_UNKNOWN_L3 139        /* Unsupported L3 protocol */
#define DROP_WRITE_ERROR 141       /* Error while writing to packet */
#define DROP_UNKNOWN_L4 142        /* Unknown L4 protocol */
#define DROP_UNKNOWN_ICMP4_TYPE 144 /* Unknown ICMPv4 type */
#define DROP_UNKNOWN_ICMP6_TYPE 146 /* Unknown ICMPv6 type */
#define DROP_NO_TUNNEL_KEY 147     /* Error retrieving tunnel key */
#define DROP_NO_LXC 152            /* No matching local container found */
#define DROP_CSUM_L3 153           /* Error while correcting L3 checksum */
#define DROP_CSUM_L4 154           /* Error while correcting L4 checksum */
#define DROP_CT_CREATE_FAILED 155  /* CT: Map insertion failed */
#define DROP_INVALID_EXTHDR 156    /* Invalid IPv6 extension header */
#define DROP_FRAG_NOSUPPORT 157    /* IP fragmentation not supported */
#define DROP_NO_TUNNEL_ENDPOINT 160 /* No tunnel/encapsulation endpoint (datapath BUG!) */
#define DROP_EDT_HORIZON 162       /* Bandwidth limit: departure too far ahead */
#define DROP_UNKNOWN_CT 163        /* Unknown connection tracking state */
#define DROP_UNSUPPORTED_L2 166    /* Unsupported L2 protocol */
#define DROP_NAT_NO_MAPPING 167    /* No mapping for NAT masquerade */
#define DROP_NAT_UNSUPP_PROTO 168  /* Unsupported protocol for NAT masquerade */
#define DROP_INVALID_IDENTITY 171  /* Invalid identity */
#define DROP_FRAG_NOT_FOUND 175    /* First logical datagram fragment not found */
#define DROP_POLICY_DENY 181       /* Policy denied by denylist */
#define DROP_TTL_EXCEEDED 196      /* TTL exceeded */
#define DROP_POLICY_NOT_READY 220  /* Policy of the endpoint not realized yet */
#define DROP_NO_ENDPOINT_ROW 221   /* Device is not registered as an endpoint */
#define DROP_ARP_IGNORED 222       /* ARP that needs no answer */
#define DROP_TUNNEL_KEY_FAILED 223 /* Error setting tunnel key */
#define DROP_ND_IGNORED 224        /* ND or MLD message that needs no answer */

/* Not a drop: an event that found no room in the ring buffer. */
#define REASON_EVENT_LOST 230      /* Event lost */
