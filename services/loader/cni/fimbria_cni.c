/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fimbria-cni: the CNI plugin that a container runtime executes.
 *
 * It does as little as it can, because its start-up is part of every pod's: it checks what the
 * runtime gave it, hands the call and the pod's network namespace (as a descriptor) to the node's
 * loader over a unix socket, and prints what comes back. The one thing that it does by itself,
 * besides VERSION, is to keep a DEL for later when no loader answers: a runtime must always be able
 * to get rid of a pod.
 *
 * Configuration members read here: cniVersion, name, socket, queue, timeout_seconds.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "json_text.h"
#include "loader_exchange.h"

#define CNI_CURRENT "1.1.0"
#define DEFAULT_SOCKET "/run/fimbria/cni.sock"
#define DEFAULT_TIMEOUT_SECONDS 60.0
#define MAX_TIMEOUT_SECONDS 3600.0
#define STATUS_TIMEOUT_SECONDS 5.0 /* a runtime asks every few seconds, and a late answer is none */
#define MAX_CONFIG (1024 * 1024)
#define MAX_CONTAINER_ID 200 /* with the interface name in hex it must fit a file name */
#define MAX_ARGS (64 * 1024)
#define PROTOCOL 1
#ifndef NS_GET_NSTYPE
#define NS_GET_NSTYPE 0xb703 /* linux/nsfs.h: _IO(0xb7, 0x3) */
#endif

/* CNI spec, "Error": 1-99 are the specification's. */
enum cni_code {
	CNI_INCOMPATIBLE_VERSION = 1,
	CNI_UNKNOWN_CONTAINER = 3,
	CNI_INVALID_ENVIRONMENT = 4,
	CNI_IO_FAILURE = 5,
	CNI_DECODE_FAILURE = 6,
	CNI_INVALID_CONFIG = 7,
	CNI_TRY_AGAIN_LATER = 11,
	CNI_NOT_AVAILABLE = 50,
};

enum verb { VERB_ADD, VERB_DEL, VERB_CHECK, VERB_STATUS, VERB_GC };

struct call {
	enum verb verb;
	const char *command;
	const char *container_id;
	const char *ifname;
	const char *netns;
	const char *args;
	const char *traceparent;
	int netns_fd;
	struct timespec started;
	struct timespec started_boot; /* the same moment on a clock that nobody sets */
};

struct config {
	struct text raw;
	char *cni_version;
	char *name;
	char *socket;
	char *queue;
	double timeout_seconds;
	const char *wrong_type; /* member whose value has another type than it must have */
	const char *wanted_type;
};

static const char *const supported_versions[] = { "0.3.1", "0.4.0", "1.0.0", "1.1.0" };

/* What errors are written in: the configuration's version as soon as it is known and supported. */
static const char *error_version = CNI_CURRENT;

static bool write_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t done = write(fd, data, len);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return false;
		data += done;
		len -= (size_t)done;
	}
	return true;
}

static _Noreturn void fail(enum cni_code code, const char *details, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static _Noreturn void fail(enum cni_code code, const char *details, const char *format, ...)
{
	struct text out = { 0 };
	char number[32], *msg;
	va_list list;

	va_start(list, format);
	if (vasprintf(&msg, format, list) < 0)
		abort();
	va_end(list);
	text_puts(&out, "{\"cniVersion\":");
	text_add_string(&out, error_version);
	snprintf(number, sizeof(number), ",\"code\":%d,\"msg\":", (int)code);
	text_puts(&out, number);
	text_add_string(&out, msg);
	text_puts(&out, ",\"details\":");
	text_add_string(&out, details ? details : "");
	text_puts(&out, "}\n");
	write_all(STDOUT_FILENO, out.data, out.len);
	exit(1);
}

/* ---- what the runtime gives ---- */

static bool version_supported(const char *version)
{
	for (size_t i = 0; i < sizeof(supported_versions) / sizeof(*supported_versions); i++)
		if (!strcmp(version, supported_versions[i]))
			return true;
	return false;
}

static int print_versions(void)
{
	static const char answer[] =
		"{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n";

	return write_all(STDOUT_FILENO, answer, sizeof(answer) - 1) ? 0 : 1;
}

static const char *environment(const char *name)
{
	const char *value = getenv(name);

	return value ? value : "";
}

/* CNI spec: alphanumeric first, then alphanumerics, '_', '.', '-'. */
static bool is_cni_name(const char *name)
{
	if (!isalnum((unsigned char)*name))
		return false;
	for (; *name; name++)
		if (!isalnum((unsigned char)*name) && !strchr("_.-", *name))
			return false;
	return true;
}

/* The kernel's dev_valid_name(), and no control characters. */
static const char *ifname_problem(const char *name)
{
	if (strlen(name) > 15)
		return "longer than 15 bytes";
	if (!strcmp(name, ".") || !strcmp(name, ".."))
		return "\".\" and \"..\" are not interface names";
	if (!utf8_valid(name))
		return "not valid UTF-8";
	for (; *name; name++)
		if (*name == '/' || *name == ':' || (unsigned char)*name <= ' ' || *name == 0x7f)
			return "contains '/', ':', a space or a control character";
	return NULL;
}

/* STATUS and GC are about the network, not about a container. */
static bool about_container(const struct call *call)
{
	return call->verb != VERB_STATUS && call->verb != VERB_GC;
}

static void read_environment(struct call *call)
{
	struct text missing = { 0 };
	const char *problem;

	call->container_id = call->ifname = call->netns = call->args = "";
	call->traceparent = environment("TRACEPARENT");
	if (!utf8_valid(call->traceparent) || strlen(call->traceparent) > 128)
		call->traceparent = "";
	if (!about_container(call))
		return;
	text_add(&missing, "", 0);
	call->container_id = environment("CNI_CONTAINERID");
	call->ifname = environment("CNI_IFNAME");
	call->netns = environment("CNI_NETNS");
	call->args = environment("CNI_ARGS");
	if (!*call->container_id)
		text_puts(&missing, " CNI_CONTAINERID");
	if (!*call->netns && call->verb != VERB_DEL)
		text_puts(&missing, " CNI_NETNS");
	if (!*call->ifname)
		text_puts(&missing, " CNI_IFNAME");
	if (missing.len)
		fail(CNI_INVALID_ENVIRONMENT, "CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS and CNI_IFNAME must be set",
		     "required environment variables missing:%s", missing.data);
	if (!is_cni_name(call->container_id))
		fail(CNI_INVALID_ENVIRONMENT, "expected alphanumerics, '_', '.' and '-', starting with an alphanumeric",
		     "invalid CNI_CONTAINERID \"%s\"", call->container_id);
	if (strlen(call->container_id) > MAX_CONTAINER_ID)
		fail(CNI_INVALID_ENVIRONMENT, call->container_id, "invalid CNI_CONTAINERID: longer than %d bytes",
		     MAX_CONTAINER_ID);
	problem = ifname_problem(call->ifname);
	if (problem)
		fail(CNI_INVALID_ENVIRONMENT, problem, "invalid CNI_IFNAME \"%s\": %s", call->ifname, problem);
	if (!utf8_valid(call->netns) || strlen(call->netns) >= PATH_MAX)
		fail(CNI_INVALID_ENVIRONMENT, "expected a path in UTF-8", "invalid CNI_NETNS \"%.200s\"", call->netns);
	if (!utf8_valid(call->args) || strlen(call->args) > MAX_ARGS)
		fail(CNI_INVALID_ENVIRONMENT, "expected KEY=VALUE;KEY=VALUE in UTF-8, at most 64 KiB", "invalid CNI_ARGS");
}

static void read_config(struct text *raw)
{
	struct timespec start;
	char chunk[16384];

	clock_gettime(CLOCK_MONOTONIC, &start);
	text_add(raw, "", 0);
	for (;;) {
		struct pollfd ready = { .fd = STDIN_FILENO, .events = POLLIN };
		double left = DEFAULT_TIMEOUT_SECONDS - seconds_since(&start);
		ssize_t got;

		if (left <= 0 || poll(&ready, 1, (int)(left * 1000) + 1) == 0)
			fail(CNI_IO_FAILURE, "standard input was not closed within 60 s", "no network configuration on stdin");
		got = read(STDIN_FILENO, chunk, sizeof(chunk));
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			fail(CNI_IO_FAILURE, strerror(errno), "cannot read the network configuration from stdin");
		if (got == 0)
			return;
		text_add(raw, chunk, (size_t)got);
		if (raw->len > MAX_CONFIG)
			fail(CNI_DECODE_FAILURE, "expected at most 1 MiB", "network configuration on stdin is too large");
	}
}

static void config_member(void *arg, const struct json_member *member)
{
	static const char *const strings[] = { "cniVersion", "name", "socket", "queue" };
	struct config *config = arg;
	char **const targets[] = { &config->cni_version, &config->name, &config->socket, &config->queue };

	for (size_t i = 0; i < sizeof(strings) / sizeof(*strings); i++) {
		if (strcmp(member->key, strings[i]))
			continue;
		if (member->type == JSON_STRING) {
			free(*targets[i]);
			*targets[i] = json_decode_string(member->value, member->value_len);
		} else {
			config->wrong_type = strings[i];
			config->wanted_type = "a string";
		}
	}
	if (!strcmp(member->key, "timeout_seconds")) {
		if (member->type == JSON_NUMBER) {
			config->timeout_seconds = strtod(member->value, NULL);
		} else {
			config->wrong_type = "timeout_seconds";
			config->wanted_type = "a number";
		}
	}
}

/* Fills what is unset: the socket, and beside it the directory of waiting DELs. */
static void config_defaults(struct config *config)
{
	const char *slash;
	char *queue;

	if (!config->socket)
		config->socket = strdup(DEFAULT_SOCKET);
	if (config->queue || !config->socket)
		return;
	slash = strrchr(config->socket, '/');
	if (slash && asprintf(&queue, "%.*s/deletes", (int)(slash - config->socket), config->socket) >= 0)
		config->queue = queue;
}

static void parse_config(struct config *config, const struct call *call)
{
	struct json_scan scan = { .member = config_member, .arg = config };

	config->timeout_seconds = DEFAULT_TIMEOUT_SECONDS;
	if (!json_scan_object(&scan, config->raw.data, config->raw.len)) {
		char where[64];

		snprintf(where, sizeof(where), "at byte %zu of %zu", (size_t)(scan.at - scan.start), config->raw.len);
		fail(CNI_DECODE_FAILURE, where, "network configuration on stdin is not JSON: %s", scan.error);
	}
	if (config->cni_version && version_supported(config->cni_version))
		error_version = config->cni_version;
	if (config->wrong_type)
		fail(CNI_INVALID_CONFIG, "", "network configuration: \"%s\" must be %s", config->wrong_type,
		     config->wanted_type);
	if (!config->cni_version || !version_supported(config->cni_version))
		fail(CNI_INCOMPATIBLE_VERSION, "supported: 0.3.1, 0.4.0, 1.0.0, 1.1.0", "incompatible cniVersion \"%s\"",
		     config->cni_version ? config->cni_version : "");
	if (!about_container(call) && strcmp(config->cni_version, "1.1.0"))
		fail(CNI_INCOMPATIBLE_VERSION, "expected 1.1.0 or later", "cniVersion %s has no %s", config->cni_version,
		     call->command);
	if (!config->name || !is_cni_name(config->name))
		fail(CNI_INVALID_CONFIG, "expected alphanumerics, '_', '.' and '-', starting with an alphanumeric",
		     "network configuration: missing or invalid \"name\" \"%s\"", config->name ? config->name : "");
	config_defaults(config);
	if (!config->socket || config->socket[0] != '/' ||
	    strlen(config->socket) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		fail(CNI_INVALID_CONFIG, "expected an absolute path of at most 107 bytes",
		     "network configuration: invalid \"socket\" \"%s\"", config->socket ? config->socket : "");
	if (!config->queue || config->queue[0] != '/' || strlen(config->queue) >= PATH_MAX)
		fail(CNI_INVALID_CONFIG, "expected an absolute path", "network configuration: invalid \"queue\" \"%s\"",
		     config->queue ? config->queue : "");
	if (!(config->timeout_seconds > 0 && config->timeout_seconds <= MAX_TIMEOUT_SECONDS))
		fail(CNI_INVALID_CONFIG, "expected more than 0 and at most 3600",
		     "network configuration: invalid \"timeout_seconds\" %g", config->timeout_seconds);
}

/* Opens CNI_NETNS. A DEL goes on without it: the namespace may be long gone. */
static void open_netns(struct call *call)
{
	call->netns_fd = *call->netns ? open(call->netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
	if (call->netns_fd >= 0 && ioctl(call->netns_fd, NS_GET_NSTYPE) != CLONE_NEWNET) {
		close(call->netns_fd);
		call->netns_fd = -1;
		errno = EINVAL;
	}
	if (call->netns_fd >= 0 || call->verb == VERB_DEL || !about_container(call))
		return;
	if (errno == ENOENT || errno == ENOTDIR)
		fail(CNI_UNKNOWN_CONTAINER, strerror(errno), "CNI_NETNS \"%s\" does not exist", call->netns);
	if (errno == EINVAL)
		fail(CNI_INVALID_ENVIRONMENT, "expected the path of a network namespace",
		     "CNI_NETNS \"%s\" is not a network namespace", call->netns);
	fail(CNI_INVALID_ENVIRONMENT, strerror(errno), "cannot open CNI_NETNS \"%s\"", call->netns);
}

/* ---- the loader ---- */

static long long nanoseconds(const struct timespec *time)
{
	return (long long)time->tv_sec * 1000000000LL + time->tv_nsec;
}

static void build_request(struct text *out, const struct call *call, const struct config *config)
{
	char number[128];

	snprintf(number, sizeof(number), "{\"protocol\":%d,\"startedNs\":%lld,\"startedBootNs\":%lld,\"command\":",
		 PROTOCOL, nanoseconds(&call->started), nanoseconds(&call->started_boot));
	text_puts(out, number);
	text_add_string(out, call->command);
	text_puts(out, ",\"containerId\":");
	text_add_string(out, call->container_id);
	text_puts(out, ",\"ifname\":");
	text_add_string(out, call->ifname);
	text_puts(out, ",\"netns\":");
	text_add_string(out, call->netns);
	text_puts(out, ",\"args\":");
	text_add_string(out, call->args);
	text_puts(out, ",\"traceparent\":");
	text_add_string(out, call->traceparent);
	text_puts(out, ",\"config\":");
	text_add(out, config->raw.data, config->raw.len);
	text_puts(out, "}");
}

/* ---- a DEL that waits ---- */

/*
 * Keeps the request as DIR/CONTAINERID@HEX(IFNAME).json, whole or not at all: the loader reads the
 * directory at start and from time to time. A second DEL of the same attachment replaces the first.
 */
static bool queue_delete(const struct call *call, const char *dir, const struct text *request, const char **step)
{
	char name[256], temporary[64];
	struct timespec now;
	size_t at;
	int dir_fd, fd;
	bool done;

	*step = "cannot make the queue directory";
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return false;
	*step = "cannot open the queue directory";
	dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		return false;
	at = (size_t)snprintf(name, sizeof(name), "%s@", call->container_id);
	for (const char *c = call->ifname; *c; c++)
		at += (size_t)snprintf(name + at, sizeof(name) - at, "%02x", (unsigned char)*c);
	snprintf(name + at, sizeof(name) - at, ".json");
	clock_gettime(CLOCK_MONOTONIC, &now);
	snprintf(temporary, sizeof(temporary), ".%d-%lld.tmp", (int)getpid(), nanoseconds(&now));
	*step = "cannot create a file in the queue directory";
	fd = openat(dir_fd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return false;
	*step = "cannot write to the queue directory";
	done = write_all(fd, request->data, request->len) && fsync(fd) == 0;
	done = close(fd) == 0 && done;
	done = done && renameat(dir_fd, temporary, dir_fd, name) == 0 && fsync(dir_fd) == 0;
	if (!done) {
		int error = errno;

		unlinkat(dir_fd, temporary, 0);
		errno = error;
	}
	close(dir_fd);
	return done;
}

static int no_reply(const struct call *call, const struct config *config, const struct exchange *exchange,
		    const struct text *request)
{
	const char *why = exchange->error ? strerror(exchange->error) : "";
	const char *step;

	if (call->verb == VERB_DEL) {
		if (queue_delete(call, config->queue, request, &step))
			return 0;
		fail(CNI_IO_FAILURE, strerror(errno), "%s, and the DEL cannot be kept for later: %s \"%s\"",
		     exchange->problem, step, config->queue);
	}
	if (call->verb == VERB_STATUS)
		fail(CNI_NOT_AVAILABLE, why, "%s (socket \"%s\", timeout %g s)", exchange->problem, config->socket,
		     exchange->timeout_seconds);
	if (exchange->error == EPROTO)
		fail(CNI_IO_FAILURE, config->socket, "what answers on the loader's socket is not understood: %s",
		     exchange->problem);
	fail(CNI_TRY_AGAIN_LATER, why, "%s (socket \"%s\", timeout %g s)", exchange->problem, config->socket,
	     config->timeout_seconds);
}

/*
 * Nobody heard that the ADD succeeded: the runtime has died meanwhile, knows nothing of it when it comes back, and
 * will never ask for the DEL.
 */
static void undo_add(struct call *call, const struct config *config)
{
	struct exchange exchange = { .fd = -1, .timeout_seconds = config->timeout_seconds };
	struct text request = { 0 }, reply = { 0 };
	const char *step;
	bool is_error;

	call->verb = VERB_DEL;
	call->command = "DEL";
	clock_gettime(CLOCK_REALTIME, &call->started);
	clock_gettime(CLOCK_BOOTTIME, &call->started_boot);
	build_request(&request, call, config);
	clock_gettime(CLOCK_MONOTONIC, &exchange.start);
	if (!ask_loader(&exchange, config->socket, &request, call->netns_fd, &reply, &is_error))
		queue_delete(call, config->queue, &request, &step);
}

int main(void)
{
	static const char *const verbs[] = { [VERB_ADD] = "ADD", [VERB_DEL] = "DEL", [VERB_CHECK] = "CHECK",
					     [VERB_STATUS] = "STATUS", [VERB_GC] = "GC" };
	struct call call = { .netns_fd = -1 };
	struct config config = { 0 };
	struct exchange exchange = { .fd = -1 };
	struct text request = { 0 }, reply = { 0 };
	bool is_error = false;
	size_t verb;

	/* A runtime that is gone is told by the write's result. */
	signal(SIGPIPE, SIG_IGN);
	clock_gettime(CLOCK_REALTIME, &call.started);
	clock_gettime(CLOCK_BOOTTIME, &call.started_boot);
	call.command = environment("CNI_COMMAND");
	if (!strcmp(call.command, "VERSION"))
		return print_versions();
	for (verb = 0; verb < sizeof(verbs) / sizeof(*verbs); verb++)
		if (!strcmp(call.command, verbs[verb]))
			break;
	if (verb == sizeof(verbs) / sizeof(*verbs))
		fail(CNI_INVALID_ENVIRONMENT, "expected ADD, DEL, CHECK, STATUS, GC or VERSION", "%s CNI_COMMAND \"%s\"",
		     *call.command ? "unknown" : "missing", call.command);
	call.verb = (enum verb)verb;
	read_environment(&call);
	read_config(&config.raw);
	parse_config(&config, &call);
	open_netns(&call);
	build_request(&request, &call, &config);
	exchange.timeout_seconds = config.timeout_seconds;
	if (call.verb == VERB_STATUS && exchange.timeout_seconds > STATUS_TIMEOUT_SECONDS)
		exchange.timeout_seconds = STATUS_TIMEOUT_SECONDS;
	clock_gettime(CLOCK_MONOTONIC, &exchange.start);
	if (!ask_loader(&exchange, config.socket, &request, call.netns_fd, &reply, &is_error))
		return no_reply(&call, &config, &exchange, &request);
	if (reply.len)
		text_puts(&reply, "\n");
	if (!write_all(STDOUT_FILENO, reply.data, reply.len)) {
		if (call.verb == VERB_ADD && !is_error)
			undo_add(&call, &config);
		return 1;
	}
	return is_error ? 1 : 0;
}
