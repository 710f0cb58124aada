/* What the programs here have in common and the slides leave out: the connection. */
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* The address of a numeric host and a port. */
static socklen_t resolve(const char *host, const char *port, struct sockaddr_storage *address)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM };
	struct addrinfo *found;
	socklen_t length;

	if (getaddrinfo(host, port, &hints, &found) != 0) {
		fprintf(stderr, "%s port %s is no address\n", host, port);
		exit(2);
	}
	length = found->ai_addrlen;
	memcpy(address, found->ai_addr, length);
	freeaddrinfo(found);
	return length;
}

/* A connection to a server that sends back what it gets, by a plain TCP socket. A byte each way makes it fully
 * established, so that subflows can be opened. */
static int connect_to(const char *host, const char *port)
{
	struct sockaddr_storage address;
	socklen_t length = resolve(host, port, &address);
	int sockfd = socket(address.ss_family, SOCK_STREAM, IPPROTO_TCP);
	char byte = 'x';

	if (sockfd < 0)
		die("socket");
	if (connect(sockfd, (struct sockaddr *)&address, length) < 0)
		die("connect");
	if (write(sockfd, &byte, 1) != 1 || read(sockfd, &byte, 1) != 1)
		die("a byte each way");
	return sockfd;
}

/* Lets whoever started us look: goes on at a line, or at the end, of standard input. */
static void pause_here(const char *stage)
{
	int c;

	printf("-- %s\n", stage);
	fflush(stdout);
	do
		c = getchar();
	while (c != '\n' && c != EOF);
}
