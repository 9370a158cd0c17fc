/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What runs in the tests' containers, the only file of their image:
 *
 *   container                     waits for SIGTERM: the pause container of a pod
 *   container serve PORT TEXT     says TEXT to whoever connects, over IPv4 or IPv6
 *   container ask ADDRESS PORT    prints what is said there; 1 when nothing is said within three seconds
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define ASK_MILLISECONDS 3000

static void leave(int number)
{
	(void)number;
	_exit(0);
}

static void collect(int number)
{
	(void)number;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

static int serve(const char *port, const char *text)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)atoi(port)) };
	int one = 1, listener = socket(AF_INET6, SOCK_STREAM, 0);

	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(listener, (struct sockaddr *)&any, sizeof(any)) || listen(listener, 64)) {
		perror("serve");
		return 1;
	}
	for (;;) {
		int connection = accept(listener, NULL, NULL);

		if (connection < 0)
			continue;
		if (send(connection, text, strlen(text), MSG_NOSIGNAL) < 0)
			perror("send");
		close(connection);
	}
}

static int ask(const char *address, const char *port)
{
	struct sockaddr_in6 to6 = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)atoi(port)) };
	struct sockaddr_in to4 = { .sin_family = AF_INET, .sin_port = to6.sin6_port };
	bool is6 = inet_pton(AF_INET6, address, &to6.sin6_addr) == 1;
	struct sockaddr *to = is6 ? (struct sockaddr *)&to6 : (struct sockaddr *)&to4;
	int connection = socket(to->sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	struct pollfd ready = { .fd = connection, .events = POLLIN };
	char answer[256];
	ssize_t size;

	if (!is6 && inet_pton(AF_INET, address, &to4.sin_addr) != 1) {
		fprintf(stderr, "ask: %s is no address\n", address);
		return 2;
	}
	(void)connect(connection, to, is6 ? sizeof(to6) : sizeof(to4));
	if (poll(&ready, 1, ASK_MILLISECONDS) <= 0)
		return 1;
	size = recv(connection, answer, sizeof(answer), 0);
	if (size <= 0)
		return 1;
	printf("%.*s", (int)size, answer);
	return 0;
}

int main(int count, char **words)
{
	struct sigaction on_term = { .sa_handler = leave }, on_child = { .sa_handler = collect };

	sigaction(SIGTERM, &on_term, NULL);
	sigaction(SIGINT, &on_term, NULL);
	sigaction(SIGCHLD, &on_child, NULL);
	if (count == 4 && !strcmp(words[1], "serve"))
		return serve(words[2], words[3]);
	if (count == 4 && !strcmp(words[1], "ask"))
		return ask(words[2], words[3]);
	if (count != 1) {
		fprintf(stderr, "container: serve PORT TEXT, ask ADDRESS PORT, or nothing\n");
		return 2;
	}
	for (;;)
		pause();
}
