/*
 * The cost of system calls, for run.py: run_calls SERVER PORT CALLS.
 *
 * Connects, and prints in ns the mean time of getsockopt(TCP_NODELAY), which no supervisor hears of, of a bare
 * getsockopt(MPTCP_INFO), of getsockopt(MPTCP_GET_SUB_IDS), 0 where that fails, and of socket() with its close().
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SOL_MPTCP		284
#define MPTCP_INFO		1
#define MPTCP_GET_SUB_IDS	66

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static double option(int fd, int level, int name, int calls)
{
	char buffer[512];
	socklen_t length;
	double start = now();
	int i;

	for (i = 0; i < calls; i++) {
		length = sizeof(buffer);
		if (getsockopt(fd, level, name, buffer, &length) < 0)
			return 0;
	}
	return (now() - start) / calls;
}

static double sockets(int protocol, int calls)
{
	double start = now();
	int i;

	for (i = 0; i < calls; i++)
		close(socket(AF_INET, SOCK_STREAM, protocol));
	return (now() - start) / calls;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	int calls = argc > 3 ? atoi(argv[3]) : 0;
	int protocol = argc > 4 ? atoi(argv[4]) : 0;
	int fd = socket(AF_INET, SOCK_STREAM, protocol);
	char byte = 'x';

	if (calls <= 0) {
		fprintf(stderr, "usage: run_calls SERVER PORT CALLS [PROTOCOL]\n");
		return 2;
	}
	inet_pton(AF_INET, argv[1], &address.sin_addr);
	address.sin_port = htons(atoi(argv[2]));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || write(fd, &byte, 1) != 1 ||
	    read(fd, &byte, 1) != 1) {
		perror("connection");
		return 1;
	}
	printf("%f %f %f %f\n", option(fd, IPPROTO_TCP, TCP_NODELAY, 100 * calls),
	       option(fd, SOL_MPTCP, MPTCP_INFO, 100 * calls), option(fd, IPPROTO_TCP, MPTCP_GET_SUB_IDS, calls),
	       sockets(protocol, calls));
	return 0;
}
