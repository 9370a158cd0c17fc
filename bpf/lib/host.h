/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The host firewall: policies that select the node, judged by the host
 * endpoint in its slot. Off, and next to free, until one does.
 *
 * So that no policy can lock the operator out of the node, new flows on the
 * failsafe ports are let through whatever it says; so is the overlay, and
 * everything between the node and itself.
 *
 * The node, unlike a pod, has connections from before anybody looked: its
 * sockets tell which these are, and who began them.
 */
#pragma once

#include "common.h"
#include "endpoint.h"
#include "failsafe.h"
#include "flow.h"
#include "forward.h"
#include "identity.h"
#include "nd.h"
#include "packet.h"
#include "parse6.h"

/* Address resolution is no traffic: without it no policy could allow any. */
static __always_inline bool is_discovery(struct __sk_buff *skb, const bool v6)
{
	return v6 && is_neighbour_discovery(skb);
}

/*
 * Whether the stack takes a packet that came in from the network for the node,
 * rather than forward it: any of its addresses, not only those that it is
 * configured with. What it would not forward either way counts as that.
 */
static __always_inline bool is_for_node(struct __sk_buff *skb, const struct packet *p,
					const bool v6)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	int ret;

	if (is_multicast(&p->daddr, v6))
		return true;
	if (v6) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &p->saddr, sizeof(p->saddr));
		__builtin_memcpy(fib.ipv6_dst, &p->daddr, sizeof(p->daddr));
	} else {
		fib.family = AF_INET;
		fib.ipv4_src = p->saddr.w[0];
		fib.ipv4_dst = p->daddr.w[0];
	}
	ret = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	return ret < 0 || ret == BPF_FIB_LKUP_RET_NOT_FWDED || ret == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

__noinline int is_for_node4(struct __sk_buff *skb, struct packet *p)
{
	return p && is_for_node(skb, p, false);
}

__noinline int is_for_node6(struct __sk_buff *skb, struct packet *p)
{
	return p && is_for_node(skb, p, true);
}

#define TCP_STATE_NEW_SYN_RECV 12
#define TCP_STATE_LISTEN 10

#define BEGUN_UNKNOWN 0 /* there is no such connection */
#define BEGUN_BY_NODE 1
#define BEGUN_BY_PEER 2

/* The state of the socket that a segment from remote would reach, 0: none. */
static __always_inline __u32 tcp_state(struct __sk_buff *skb, const struct in6 *remote,
				       __be16 remote_port, const struct in6 *local,
				       __be16 local_port, const bool v6)
{
	const __u32 size = v6 ? sizeof(((struct bpf_sock_tuple *)0)->ipv6) :
				sizeof(((struct bpf_sock_tuple *)0)->ipv4);
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 state;

	if (v6) {
		__builtin_memcpy(tuple.ipv6.saddr, remote, sizeof(*remote));
		__builtin_memcpy(tuple.ipv6.daddr, local, sizeof(*local));
		tuple.ipv6.sport = remote_port;
		tuple.ipv6.dport = local_port;
	} else {
		tuple.ipv4.saddr = remote->w[0];
		tuple.ipv4.daddr = local->w[0];
		tuple.ipv4.sport = remote_port;
		tuple.ipv4.dport = local_port;
	}
	sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	state = sk->state;
	bpf_sk_release(sk);
	return state;
}

/*
 * Who began the node's TCP connection that the packet belongs to. A socket does
 * not say, but where the node listens on its port, the peer has connected to it.
 */
static __always_inline int tcp_begun_by(struct __sk_buff *skb, const struct packet *p, bool sends,
					const bool v6)
{
	const struct in6 *local = sends ? &p->flow_saddr : &p->daddr;
	const struct in6 *remote = sends ? &p->daddr : &p->flow_saddr;
	const __be16 port = sends ? p->sport : p->dport;
	const __u32 state = tcp_state(skb, remote, sends ? p->dport : p->sport, local, port, v6);

	if (!state || state == TCP_STATE_LISTEN)
		return BEGUN_UNKNOWN;
	if (state == TCP_STATE_NEW_SYN_RECV)
		return BEGUN_BY_PEER;
	/* Nobody is connected to port 0: what is found for it listens. */
	return tcp_state(skb, remote, 0, local, port, v6) ? BEGUN_BY_PEER : BEGUN_BY_NODE;
}

__noinline int tcp_begun_by4(struct __sk_buff *skb, const struct packet *p, bool sends)
{
	return p ? tcp_begun_by(skb, p, sends, false) : BEGUN_UNKNOWN;
}

__noinline int tcp_begun_by6(struct __sk_buff *skb, const struct packet *p, bool sends)
{
	return p ? tcp_begun_by(skb, p, sends, true) : BEGUN_UNKNOWN;
}

/* Whether the packet may belong to a TCP connection that has been there before its flow. */
static __always_inline bool is_mid_connection(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && p->flags & (PACKET_NEW | PACKET_RELATED) &&
	       (p->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN;
}

/*
 * A packet between the node and somebody else is judged by the node's policy in
 * three steps, each of which is verified by itself and needs little stack:
 *
 * host_look() finds its flow. What goes on as it was judged passes. Otherwise
 * it fills p->direction: whose verdict it is, p->target: the identity that it is
 * about, and PACKET_REPLY or PACKET_ALONE.
 * host_verdict() asks the policy, lets pass what is failsafe, remembers that.
 * host_keep() accounts for the packet.
 */
#define HOST_ASK 1

/*
 * parsed: what parse() said; the other end's identity is known. Returns 0 for a
 * packet that passes, HOST_ASK, or a DROP().
 */
static __always_inline int host_look(struct __sk_buff *skb, struct packet *p, int parsed, bool sends,
				     const bool v6)
{
	const struct endpoint *host = host_endpoint();
	const struct ct_side *own;
	struct remote remote;
	struct flow f;
	__u32 begun;
	int ret;

	if (!host)
		return 0;
	p->endpoint_id = host->endpoint_id;
	p->direction = sends ? DIR_EGRESS : DIR_INGRESS;
	p->target = sends ? p->dst_identity : p->src_identity;
	if (unlikely(parsed)) {
		p->flags |= PACKET_ALONE;
		/* Listener messages for multicast groups: those of discovery are among them. */
		return DROP_REASON(parsed) == DROP_ND_IGNORED ? 0 : HOST_ASK;
	}

	flow_find(&f, p, v6);
	if (likely(flow_goes_on(&f, p))) {
		own = sends ? source_side(&f) : destination_side(&f);
		if (own->generation == p->generation && own->owner == host->endpoint_id &&
		    (f.reply || own->identity == p->target)) {
			flow_count(&f, p, skb->len);
			return 0;
		}
	}
	/* As a router the node tells of flows of others: so it may, if there are such. */
	if (sends && p->flags & PACKET_RELATED && f.ct && f.ct->expires >= p->now &&
	    !is_host_address(&p->flow_saddr, v6))
		return 0;

	ret = flow_start(&f, p, sends ? host : NULL, sends ? NULL : host);
	if (ret)
		p->flags |= PACKET_ALONE;
	if ((ret || !f.ct) && is_mid_connection(p)) {
		begun = v6 ? tcp_begun_by6(skb, p, sends) : tcp_begun_by4(skb, p, sends);
		if (begun != BEGUN_UNKNOWN) {
			p->flags &= ~PACKET_ALONE;
			f.reply = (begun == BEGUN_BY_NODE) != sends;
			/* An error may come from a router: what counts is who is at the other end. */
			if (p->flags & PACKET_RELATED && !sends) {
				remote_find(&remote, &p->flow_saddr, v6);
				p->target = remote.identity;
			}
		}
	} else if (!ret && f.ct && (f.reply || p->flags & PACKET_RELATED)) {
		own = sends ? source_side(&f) : destination_side(&f);
		if (own->owner)
			p->target = own->identity;
	}
	if (f.reply && !(p->flags & PACKET_ALONE)) {
		p->flags |= PACKET_REPLY;
		p->direction = sends ? DIR_INGRESS : DIR_EGRESS;
	}
	return HOST_ASK;
}

__noinline int host_look4(struct __sk_buff *skb, struct packet *p, int parsed, bool sends)
{
	return p ? host_look(skb, p, parsed, sends, false) : DROP(DROP_INVALID);
}

__noinline int host_look6(struct __sk_buff *skb, struct packet *p, int parsed, bool sends)
{
	return p ? host_look(skb, p, parsed, sends, true) : DROP(DROP_INVALID);
}

static __always_inline __be16 host_port(const struct packet *p)
{
	if (p->protocol == IPPROTO_ICMP)
		return bpf_htons(ICMP_ECHO);
	if (p->protocol == IPPROTO_ICMPV6)
		return bpf_htons(ICMPV6_ECHO_REQUEST);
	return p->flags & PACKET_REPLY ? p->sport : p->dport;
}

/*
 * What neither continues nor starts a flow is judged by itself: each packet by
 * the direction that it goes, by entries for its protocol or for all.
 */
static __always_inline int host_verdict_alone(struct __sk_buff *skb, struct packet *p, int parsed,
					      const struct subject *row)
{
	const struct policy_shape *shape = &row->shape[one_bit(p->direction)];
	const bool in_force = policy_is_in_force(shape);
	__u8 type = 0;

	/* As long as no policy says otherwise it is the stack's to refuse. */
	if (!in_force && policy_is_plain(shape))
		return 0;
	switch (parsed ? DROP_REASON(parsed) : 0) {
	case 0:
	case DROP_UNKNOWN_L4:
	case DROP_UNKNOWN_ICMP4_TYPE:
	case DROP_UNKNOWN_ICMP6_TYPE:
		break;
	default:
		return in_force ? parsed : 0;
	}
	if (p->flags & PACKET_RELATED)
		p->protocol = p->family == FAMILY_IPV6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
	/* A later fragment has no type, but that of its first one is known. */
	if (p->flags & PACKET_ECHO_REPLY && !(p->flags & PACKET_RELATED))
		type = p->family == FAMILY_IPV6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY;
	else if ((p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6) &&
		 bpf_skb_load_bytes(skb, p->l4_offset, &type, sizeof(type)))
		return in_force ? DROP(DROP_CT_INVALID_HDR) : 0;
	return policy_verdict(skb, p, row, p->target, bpf_htons(type));
}

/* Returns 0 or a DROP(). */
__noinline int host_verdict(struct __sk_buff *skb, struct packet *p, int parsed)
{
	const struct endpoint *host = host_endpoint();
	const struct subject *row;
	struct ct_side *side;
	struct flow f = {};
	__u32 judged_by;
	__u32 epoch;
	int ret = 0;

	if (!p || !host)
		return 0;
	row = subject_row(host->subject);
	if (!row) {
		p->rule_cookie = 0;
		p->policy_revision = 0;
		ret = DROP(DROP_POLICY_NOT_READY);
	} else if (p->flags & PACKET_ALONE) {
		return host_verdict_alone(skb, p, parsed, row);
	}
	judged_by = row ? host->subject : 0;
	epoch = row ? row->epoch : 0;
	if (!(p->flags & (PACKET_NEW | PACKET_ALONE)))
		flow_entry(&f, p->family == FAMILY_IPV6);
	side = f.ct ? ct_side(f.ct, p->direction) : NULL;
	p->first_verdict = !(side && side->owner) && !(p->flags & PACKET_RELATED);
	if (row && !(side && side->owner == host->endpoint_id && side->subject == judged_by &&
		     side->epoch == epoch && side->identity == p->target))
		ret = policy_verdict(skb, p, row, p->target, host_port(p));
	if (ret) {
		if (p->flags & PACKET_ALONE ||
		    !is_failsafe(p->direction, p->protocol, host_port(p)))
			return ret;
		/* No subject's verdict: good for this generation, then asked for again. */
		judged_by = 0;
		p->rule_cookie = 0;
		if (p->first_verdict)
			policy_report(skb, p, 0, VERDICT_ALLOW, LOCATION_HERE);
	}
	if (p->flags & PACKET_RELATED)
		return 0;
	if (!flow_has_entry(&f))
		return DROP(DROP_CT_CREATE_FAILED);
	side = ct_side(f.ct, p->direction);
	side->owner = host->endpoint_id;
	side->subject = judged_by;
	side->epoch = epoch;
	side->identity = p->target;
	side->slot = HOST_SLOT;
	side_settle(side, p);
	return 0;
}

/*
 * After a verdict to let pass: accounts for the packet, and makes the entry of a
 * new flow. point: TRACE_*, where it goes. Returns 0 or a DROP().
 */
__noinline int host_keep(struct __sk_buff *skb, struct packet *p, __u32 point)
{
	struct flow f = {};

	if (!p || p->flags & PACKET_ALONE)
		return 0;
	f.reply = p->flags & PACKET_REPLY;
	if (p->flags & PACKET_NEW)
		flow_fresh(&f);
	else
		flow_entry(&f, p->family == FAMILY_IPV6);
	/* The entry's origin is the end that began. */
	if (f.reply && p->flags & PACKET_NEW)
		p->flags ^= PACKET_SECOND;
	p->direction = point == TRACE_TO_HOST ? DIR_INGRESS : DIR_EGRESS;
	return flow_commit(skb, p, &f, point, p->family == FAMILY_IPV6);
}

/* All three steps. point: TRACE_*, to the host what the node receives. Returns 0 or a DROP(). */
static __always_inline int host_judge(struct __sk_buff *skb, struct packet *p, int parsed,
				      const __u32 point, const bool v6)
{
	const bool sends = point != TRACE_TO_HOST;
	int ret = v6 ? host_look6(skb, p, parsed, sends) : host_look4(skb, p, parsed, sends);

	if (ret != HOST_ASK)
		return ret;
	ret = host_verdict(skb, p, parsed);
	return ret ? ret : host_keep(skb, p, point);
}
