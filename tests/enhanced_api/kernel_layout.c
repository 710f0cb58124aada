/*
 * A program as they were written against the kernel of 2016: its numbers and structures, none of our header, IPv4 or
 * IPv6. Open returns no id there, so that two lists are compared.
 *
 * kernel_layout [server [port [local local-port remote remote-port]]], as slides.c, with what that prints.
 */
#include "connect.h"

#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>

#define MPTCP_GET_SUB_IDS	66
#define MPTCP_CLOSE_SUB_ID	67
#define MPTCP_GET_SUB_TUPLE	68
#define MPTCP_OPEN_SUB_TUPLE	69
#define MPTCP_SUB_GETSOCKOPT	71
#define MPTCP_SUB_SETSOCKOPT	72

struct mptcp_sub_status {
	uint8_t id;
	uint16_t slave_sk:1, fully_established:1, attached:1, low_prio:1, pre_established:1;
};

struct mptcp_sub_ids {
	uint8_t sub_count;
	struct mptcp_sub_status sub_status[255];
};

struct mptcp_close_sub_id {
	uint8_t id;
};

struct mptcp_sub_tuple {
	uint8_t id;
	uint8_t addrs[2 * sizeof(struct sockaddr_in6)];
};

struct mptcp_sub_getsockopt {
	uint8_t id;
	int level;
	int optname;
	char *optval;
	unsigned int *optlen;
};

struct mptcp_sub_setsockopt {
	uint8_t id;
	int level;
	int optname;
	char *optval;
	unsigned int optlen;
};

static void list(int sockfd, struct mptcp_sub_ids *ids)
{
	unsigned int optlen = sizeof(*ids);

	if (getsockopt(sockfd, IPPROTO_TCP, MPTCP_GET_SUB_IDS, ids, &optlen) < 0)
		die("MPTCP_GET_SUB_IDS");
	if (optlen != 2 + 2u * ids->sub_count) {
		fprintf(stderr, "MPTCP_GET_SUB_IDS: %u bytes for %u subflows\n", optlen, ids->sub_count);
		exit(1);
	}
}

static void print(const struct mptcp_sub_ids *ids)
{
	int i;

	for (i = 0; i < ids->sub_count; i++)
		printf("Subflow id : %i\n", ids->sub_status[i].id);
}

static const struct mptcp_sub_status *find(const struct mptcp_sub_ids *ids, int id)
{
	int i;

	for (i = 0; i < ids->sub_count; i++)
		if (ids->sub_status[i].id == id)
			return &ids->sub_status[i];
	return NULL;
}

static void print_end(const char *what, const void *bytes, socklen_t size)
{
	struct sockaddr_storage address;
	char host[INET6_ADDRSTRLEN], port[6];

	memcpy(&address, bytes, size);
	if (getnameinfo((struct sockaddr *)&address, size, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV) != 0)
		die("getnameinfo");
	printf("\tip %s : %s %s port : %s\n", what, host, what, port);
}

static void print_endpoints(int sockfd, int id)
{
	struct mptcp_sub_tuple tuple = { .id = id };
	unsigned int optlen = sizeof(tuple);
	socklen_t size;

	if (getsockopt(sockfd, IPPROTO_TCP, MPTCP_GET_SUB_TUPLE, &tuple, &optlen) < 0)
		die("MPTCP_GET_SUB_TUPLE");
	size = (optlen - 1) / 2;
	printf("Subflow %d\n", id);
	print_end("src", tuple.addrs, size);
	print_end("dst", tuple.addrs + size, size);
}

/* Opens a subflow and waits, 10 s at most, until the peer has accepted it. */
static int open_subflow(int sockfd, const char *local, const char *local_port, const char *remote,
			const char *remote_port)
{
	struct mptcp_sub_ids before, now;
	struct mptcp_sub_tuple tuple = { .id = 0 };
	struct sockaddr_storage address;
	socklen_t size;
	unsigned int optlen;
	int i, tries;

	list(sockfd, &before);
	size = resolve(local, local_port, &address);
	memcpy(tuple.addrs, &address, size);
	resolve(remote, remote_port, &address);
	memcpy(tuple.addrs + size, &address, size);
	optlen = 1 + 2 * size;
	if (getsockopt(sockfd, IPPROTO_TCP, MPTCP_OPEN_SUB_TUPLE, &tuple, &optlen) < 0)
		die("MPTCP_OPEN_SUB_TUPLE");
	for (tries = 0; tries < 1000; tries++) {
		list(sockfd, &now);
		for (i = 0; i < now.sub_count; i++)
			if (!find(&before, now.sub_status[i].id) && now.sub_status[i].fully_established)
				return now.sub_status[i].id;
		poll(NULL, 0, 10);
	}
	fprintf(stderr, "the subflow was not accepted\n");
	exit(1);
}

static int tcp_info_of(int sockfd, int id)
{
	struct tcp_info info;
	unsigned int info_len = sizeof(info);
	struct mptcp_sub_getsockopt sub_gso = {
		.id = id, .level = IPPROTO_TCP, .optname = TCP_INFO, .optval = (char *)&info, .optlen = &info_len,
	};
	unsigned int optlen = sizeof(sub_gso);

	memset(&info, 0, sizeof(info));
	if (getsockopt(sockfd, IPPROTO_TCP, MPTCP_SUB_GETSOCKOPT, &sub_gso, &optlen) < 0) {
		perror("MPTCP_SUB_GETSOCKOPT(TCP_INFO)");
		return 1;
	}
	printf("TCP_INFO of %d: length %u state %u snd_mss %u\n", id, info_len, info.tcpi_state, info.tcpi_snd_mss);
	return 0;
}

static int ip_tos_of(int sockfd, int id, int family)
{
	int tos = IPTOS_LOWDELAY;
	struct mptcp_sub_setsockopt sub_sso = {
		.id = id,
		.level = family == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP,
		.optname = family == AF_INET6 ? IPV6_TCLASS : IP_TOS,
		.optval = (char *)&tos,
		.optlen = sizeof(tos),
	};

	if (setsockopt(sockfd, IPPROTO_TCP, MPTCP_SUB_SETSOCKOPT, &sub_sso, sizeof(sub_sso)) < 0) {
		perror("MPTCP_SUB_SETSOCKOPT(IP_TOS)");
		return 1;
	}
	printf("IP_TOS of %d: set to %d\n", id, tos);
	return 0;
}

int main(int argc, char **argv)
{
	const char *server = argc > 1 ? argv[1] : "10.1.0.1";
	const char *port = argc > 2 ? argv[2] : "1234";
	const char *local = argc > 3 ? argv[3] : "10.0.0.1";
	const char *local_port = argc > 4 ? argv[4] : "12345";
	const char *remote = argc > 5 ? argv[5] : "10.1.0.1";
	const char *remote_port = argc > 6 ? argv[6] : "1234";
	int sockfd = connect_to(server, port);
	struct mptcp_close_sub_id close_id;
	struct sockaddr_storage address;
	struct mptcp_sub_ids ids;
	unsigned int optlen;
	int failed, i, id;

	list(sockfd, &ids);
	print(&ids);
	id = open_subflow(sockfd, local, local_port, remote, remote_port);
	printf("opened : %d\n", id);
	list(sockfd, &ids);
	print(&ids);
	for (i = 0; i < ids.sub_count; i++)
		print_endpoints(sockfd, ids.sub_status[i].id);
	resolve(remote, remote_port, &address);
	failed = tcp_info_of(sockfd, id);
	failed |= ip_tos_of(sockfd, id, address.ss_family);
	pause_here("open");
	close_id.id = id;
	optlen = sizeof(close_id);
	if (getsockopt(sockfd, IPPROTO_TCP, MPTCP_CLOSE_SUB_ID, &close_id, &optlen) < 0)
		die("MPTCP_CLOSE_SUB_ID");
	printf("closed : %d\n", id);
	list(sockfd, &ids);
	print(&ids);
	pause_here("closed");
	close(sockfd);
	return failed;
}
