/*
 * The code of the slides of IETF 97, "Towards a standardised MPTCP API using socket options", as printed, against our
 * header: list the subflows, read the ends of each, open one, TCP_INFO and IP_TOS of that one, close it.
 *
 * slides [server [port [local local-port remote remote-port]]]
 *
 * The slides' own subflow, from 10.0.0.1 port 12345 to 10.1.0.1 port 1234, is the default. What is printed is one line
 * a fact. A call that fails is named on standard error, and the exit status is 1.
 */
#include "connect.h"

#include <arpa/inet.h>
#include <mptcp_enhanced_api.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <poll.h>

/* "Currently established subflows" */
static struct mptcp_sub_ids *list_ids(int sockfd)
{
	int err;
	int i;
	unsigned int optlen;

	struct mptcp_sub_ids *ids;

	optlen = 42; // must be large enough

	ids = (struct mptcp_sub_ids *) malloc(optlen);

	err=getsockopt(sockfd, IPPROTO_TCP,
	               MPTCP_GET_SUB_IDS, ids, &optlen);
	if (err < 0)
		die("MPTCP_GET_SUB_IDS");

	for(i = 0; i < ids->sub_count; i++){
		printf("Subflow id : %i\n",
		       ids->sub_status[i].id);
	}
	return ids;
}

/* "What are the endpoints of a subflow ?" */
static void print_endpoints(int sockfd, int sub_id)
{
	struct sockaddr_in *sin;

	unsigned int optlen;
	struct mptcp_sub_tuple *sub_tuple;

	optlen = 100; // must be large enough
	sub_tuple = (struct mptcp_sub_tuple *)malloc(optlen);

	sub_tuple->id = sub_id;

	if (getsockopt(sockfd, IPPROTO_TCP, MPTCP_GET_SUB_TUPLE,
	           sub_tuple,&optlen) < 0)
		die("MPTCP_GET_SUB_TUPLE");
	sin = (struct sockaddr_in*) &sub_tuple->addrs[0];

	printf("\tip src : %s src port : %hu\n", inet_ntoa(sin->sin_addr),
	                                         ntohs(sin->sin_port));

	sin = (struct sockaddr_in*) &sub_tuple->addrs[1];

	printf("\tip dst : %s dst port : %hu\n", inet_ntoa(sin->sin_addr),
	                                         ntohs(sin->sin_port));
	free(sub_tuple);
}

/* "Creating a subflow" */
static int open_subflow(int sockfd, const char *local, int local_port, const char *remote, int remote_port)
{
	int error;

	unsigned int optlen;
	struct mptcp_sub_tuple *sub_tuple;
	struct sockaddr_in *addr;

	optlen = sizeof(struct mptcp_sub_tuple) +
	            2 * sizeof(struct sockaddr_in);
	sub_tuple = malloc(optlen);
	sub_tuple->id = 0; sub_tuple->prio = 0;

	addr = (struct sockaddr_in*) &sub_tuple->addrs[0];
	addr->sin_family = AF_INET;
	addr->sin_port = htons(local_port);
	inet_pton(AF_INET, local, &addr->sin_addr);

	addr = (struct sockaddr_in*) &sub_tuple->addrs[1];
	addr->sin_family = AF_INET;
	addr->sin_port = htons(remote_port);
	inet_pton(AF_INET, remote, &addr->sin_addr);

	error =  getsockopt(sockfd, IPPROTO_TCP,
	          MPTCP_OPEN_SUB_TUPLE, sub_tuple, &optlen);
	if (error < 0)
		die("MPTCP_OPEN_SUB_TUPLE");
	error = sub_tuple->id;
	free(sub_tuple);
	return error;
}

/* Waits, 10 s at most, until the peer has accepted the subflow. */
static int wait_for(int sockfd, int id)
{
	union { struct mptcp_sub_ids ids; char bytes[2 + 2 * 255]; } all;
	unsigned int optlen;
	int i, tries;

	for (tries = 0; tries < 1000; tries++) {
		optlen = sizeof(all);
		if (getsockopt(sockfd, IPPROTO_TCP, MPTCP_GET_SUB_IDS, &all, &optlen) < 0)
			die("MPTCP_GET_SUB_IDS");
		for (i = 0; i < all.ids.sub_count; i++)
			if (all.ids.sub_status[i].id == id && all.ids.sub_status[i].fully_established)
				return 0;
		poll(NULL, 0, 10);
	}
	fprintf(stderr, "subflow %d was not accepted\n", id);
	return 1;
}

static int tcp_info_of(int sockfd, int id)
{
	struct tcp_info info;
	unsigned int info_len = sizeof(info);
	struct mptcp_sub_getsockopt sub_gso;
	unsigned int optlen = sizeof(sub_gso);

	memset(&info, 0, sizeof(info));
	sub_gso.id = id;
	sub_gso.level = IPPROTO_TCP;
	sub_gso.optname = TCP_INFO;
	sub_gso.optval = (char *)&info;
	sub_gso.optlen = &info_len;
	if (getsockopt(sockfd, IPPROTO_TCP, MPTCP_SUB_GETSOCKOPT, &sub_gso, &optlen) < 0) {
		perror("MPTCP_SUB_GETSOCKOPT(TCP_INFO)");
		return 1;
	}
	printf("TCP_INFO of %d: length %u state %u snd_mss %u\n", id, info_len, info.tcpi_state, info.tcpi_snd_mss);
	return 0;
}

static int ip_tos_of(int sockfd, int id)
{
	int tos = IPTOS_LOWDELAY;
	struct mptcp_sub_setsockopt sub_sso;

	sub_sso.id = id;
	sub_sso.level = IPPROTO_IP;
	sub_sso.optname = IP_TOS;
	sub_sso.optval = (char *)&tos;
	sub_sso.optlen = sizeof(tos);
	if (setsockopt(sockfd, IPPROTO_TCP, MPTCP_SUB_SETSOCKOPT, &sub_sso, sizeof(sub_sso)) < 0) {
		perror("MPTCP_SUB_SETSOCKOPT(IP_TOS)");
		return 1;
	}
	printf("IP_TOS of %d: set to %d\n", id, tos);
	return 0;
}

static void close_subflow(int sockfd, int id)
{
	struct mptcp_close_sub_id close_id;
	unsigned int optlen = sizeof(close_id);

	close_id.id = id;
	close_id.how = SHUT_RDWR;
	if (getsockopt(sockfd, IPPROTO_TCP, MPTCP_CLOSE_SUB_ID, &close_id, &optlen) < 0)
		die("MPTCP_CLOSE_SUB_ID");
	printf("closed : %d\n", id);
}

int main(int argc, char **argv)
{
	const char *server = argc > 1 ? argv[1] : "10.1.0.1";
	const char *port = argc > 2 ? argv[2] : "1234";
	const char *local = argc > 3 ? argv[3] : "10.0.0.1";
	int local_port = argc > 4 ? atoi(argv[4]) : 12345;
	const char *remote = argc > 5 ? argv[5] : "10.1.0.1";
	int remote_port = argc > 6 ? atoi(argv[6]) : 1234;
	int sockfd = connect_to(server, port);
	struct mptcp_sub_ids *ids;
	int failed, i, id;

	free(list_ids(sockfd));
	id = open_subflow(sockfd, local, local_port, remote, remote_port);
	printf("opened : %d\n", id);
	failed = wait_for(sockfd, id);
	ids = list_ids(sockfd);
	for (i = 0; i < ids->sub_count; i++) {
		printf("Subflow %d\n", ids->sub_status[i].id);
		print_endpoints(sockfd, ids->sub_status[i].id);
	}
	free(ids);
	failed |= tcp_info_of(sockfd, id);
	failed |= ip_tos_of(sockfd, id);
	pause_here("open");
	close_subflow(sockfd, id);
	free(list_ids(sockfd));
	pause_here("closed");
	close(sockfd);
	return failed;
}
