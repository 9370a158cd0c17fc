// SPDX-License-Identifier: Apache-2.0
// TCP latency between two network namespaces, both ends on one CPU, where the cost of the path shows and wake-ups
// across cores do not hide it. One process forks; the child serves in one namespace, the parent drives from the other.
//
//   pingpong rr      SERVER_NETNS CLIENT_NETNS ADDRESS PORT COUNT   round trips of one byte on one connection
//   pingpong connect SERVER_NETNS CLIENT_NETNS ADDRESS PORT COUNT   connect, one byte each way, close
//
// Prints one number: microseconds a round (mean over COUNT, after a warm-up of a tenth of it).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "pingpong: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void enter(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die(path);
	close(fd);
}

static void one_cpu(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static int tcp_socket(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
	struct linger reset = { .l_onoff = 1, .l_linger = 0 };

	if (fd < 0)
		die("socket");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	// No TIME_WAIT: the connect test would run out of ports.
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	return fd;
}

static void serve(int listener)
{
	char byte;

	for (;;) {
		int fd = accept(listener, NULL, NULL), on = 1;

		if (fd < 0)
			exit(0);
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		while (read(fd, &byte, 1) == 1)
			if (write(fd, &byte, 1) != 1)
				break;
		close(fd);
	}
}

static int reach(const struct sockaddr_in *address)
{
	int fd = tcp_socket();
	struct timeval limit = { .tv_sec = 3 };

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)))
		die("connect");
	return fd;
}

static void round_trip(int fd)
{
	char byte = 'x';

	if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
		die("round trip");
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	int ready[2], connects, count, fd = -1;
	double start = 0;
	char byte;
	pid_t child;

	if (argc != 7 || (strcmp(argv[1], "rr") && strcmp(argv[1], "connect"))) {
		fprintf(stderr, "usage: pingpong rr|connect SERVER_NETNS CLIENT_NETNS ADDRESS PORT COUNT\n");
		return 2;
	}
	connects = !strcmp(argv[1], "connect");
	count = atoi(argv[6]);
	address.sin_port = htons((unsigned short)atoi(argv[5]));
	if (count < 10 || inet_pton(AF_INET, argv[4], &address.sin_addr) != 1) {
		fprintf(stderr, "pingpong: bad COUNT or ADDRESS\n");
		return 2;
	}
	one_cpu();
	if (pipe2(ready, O_CLOEXEC))
		die("pipe");
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = address.sin_port };
		int listener;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		enter(argv[2]);
		listener = tcp_socket();
		if (bind(listener, (struct sockaddr *)&any, sizeof(any)) || listen(listener, 16))
			die("listen");
		if (write(ready[1], "x", 1) != 1)
			die("pipe");
		serve(listener);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		return 1;
	enter(argv[3]);
	if (!connects)
		fd = reach(&address);
	for (int i = -count / 10; i < count; i++) {
		if (!i)
			start = now();
		if (connects)
			fd = reach(&address);
		round_trip(fd);
		if (connects)
			close(fd);
	}
	printf("%.3f\n", (now() - start) / count);
	kill(child, SIGKILL);
	return 0;
}
