/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request to the loader and its reply, within a time-out.
 *
 * Wire format, both directions: a header of three big-endian u32 (magic "FCN1", kind, length) and
 * `length` bytes of JSON. Kind of a request: 0. Kind of a reply: 0 result, 1 error. The first byte
 * of a request carries the pod's network namespace as a descriptor. Mirrored in wire.py.
 */
#ifndef FIMBRIA_LOADER_EXCHANGE_H
#define FIMBRIA_LOADER_EXCHANGE_H

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "json_text.h"

#define MAGIC 0x46434e31u /* "FCN1" */
#define MAX_REPLY (1024 * 1024)

static double seconds_since(const struct timespec *start)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)(now.tv_sec - start->tv_sec) + (double)(now.tv_nsec - start->tv_nsec) / 1e9;
}

struct exchange {
	int fd;
	double timeout_seconds;
	struct timespec start;
	const char *problem; /* why no reply came */
	int error;	     /* its errno, or 0 */
};

static bool exchange_fail(struct exchange *exchange, const char *problem, int error)
{
	exchange->problem = problem;
	exchange->error = error;
	return false;
}

static bool wait_for(struct exchange *exchange, short events)
{
	for (;;) {
		struct pollfd ready = { .fd = exchange->fd, .events = events };
		double left = exchange->timeout_seconds - seconds_since(&exchange->start);
		int count = left > 0 ? poll(&ready, 1, (int)(left * 1000) + 1) : 0;

		if (count > 0)
			return true;
		if (count == 0)
			return exchange_fail(exchange, "the loader did not answer in time", 0);
		if (errno != EINTR)
			return exchange_fail(exchange, "cannot wait for the loader", errno);
	}
}

static bool connect_loader(struct exchange *exchange, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const struct timespec pause = { .tv_nsec = 2000000 };

	memcpy(address.sun_path, path, strlen(path) + 1);
	exchange->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (exchange->fd < 0)
		return exchange_fail(exchange, "cannot make a socket", errno);
	while (connect(exchange->fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		/* EAGAIN: the listen backlog is full; a unix socket offers no event for that. */
		if (errno != EAGAIN && errno != EINTR)
			return exchange_fail(exchange, "the loader cannot be reached", errno);
		if (seconds_since(&exchange->start) > exchange->timeout_seconds)
			return exchange_fail(exchange, "the loader accepted no connection in time", 0);
		nanosleep(&pause, NULL);
	}
	return true;
}

static bool send_request(struct exchange *exchange, const struct text *request, int netns_fd)
{
	uint32_t header[3] = { htonl(MAGIC), 0, htonl((uint32_t)request->len) };
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	size_t sent = 0, total = sizeof(header) + request->len;

	while (sent < total) {
		size_t skip = sent > sizeof(header) ? sent - sizeof(header) : 0;
		struct iovec parts[2] = {
			{ (char *)header + (sent < sizeof(header) ? sent : sizeof(header)),
			  sent < sizeof(header) ? sizeof(header) - sent : 0 },
			{ request->data + skip, request->len - skip },
		};
		struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
		ssize_t done;

		if (sent == 0 && netns_fd >= 0) {
			struct cmsghdr *cmsg = &control.align;

			cmsg->cmsg_level = SOL_SOCKET;
			cmsg->cmsg_type = SCM_RIGHTS;
			cmsg->cmsg_len = CMSG_LEN(sizeof(int));
			memcpy(CMSG_DATA(cmsg), &netns_fd, sizeof(int));
			message.msg_control = &control;
			message.msg_controllen = sizeof(control);
		}
		done = sendmsg(exchange->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (done >= 0)
			sent += (size_t)done;
		else if (errno == EAGAIN ? !wait_for(exchange, POLLOUT) : errno != EINTR)
			return exchange->problem ? false :
				exchange_fail(exchange, "the loader broke off while it was asked", errno);
	}
	return true;
}

static bool receive(struct exchange *exchange, char *data, size_t len)
{
	while (len) {
		ssize_t got;

		if (!wait_for(exchange, POLLIN))
			return false;
		got = recv(exchange->fd, data, len, MSG_DONTWAIT);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (got <= 0)
			return exchange_fail(exchange, "the loader closed the connection without a reply",
					     got < 0 ? errno : 0);
		data += got;
		len -= (size_t)got;
	}
	return true;
}

/* Returns true with the reply in `body`, false when no loader gave one; a reply that makes no sense ends the call. */
static bool ask_loader(struct exchange *exchange, const char *path, const struct text *request, int netns_fd,
		       struct text *body, bool *is_error)
{
	struct json_scan scan = { 0 };
	uint32_t header[3], length;
	char *data;

	if (!connect_loader(exchange, path) || !send_request(exchange, request, netns_fd) ||
	    !receive(exchange, (char *)header, sizeof(header)))
		return false;
	length = ntohl(header[2]);
	if (ntohl(header[0]) != MAGIC || ntohl(header[1]) > 1 || length > MAX_REPLY)
		return exchange_fail(exchange, "the reply has no valid header", EPROTO);
	*is_error = ntohl(header[1]) == 1;
	data = malloc(length + 1);
	if (!data)
		abort();
	if (!receive(exchange, data, length))
		return false;
	if ((length || *is_error) && !json_scan_object(&scan, data, length))
		return exchange_fail(exchange, "the reply is not a JSON object", EPROTO);
	text_add(body, data, length);
	free(data);
	return true;
}

#endif
