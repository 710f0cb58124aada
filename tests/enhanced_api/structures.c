/*
 * The structures of the enhanced socket API as the compiler lays them out, of all three sources: the kernel of 2016,
 * draft-hesmans-mptcp-socket-00 and our header. Prints each, filled in, as "name = bytes".
 *
 * Its output on x86-64 is tests/data/enhanced_api.txt.
 */
#include <arpa/inet.h>
#include <mptcp_enhanced_api.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>

struct kernel_sub_status {
	uint8_t id;
	uint16_t slave_sk:1, fully_established:1, attached:1, low_prio:1, pre_established:1;
};

struct kernel_sub_ids {
	uint8_t sub_count;
	struct kernel_sub_status sub_status[0];
};

struct kernel_close_sub_id {
	uint8_t id;
};

struct kernel_sub_tuple {
	uint8_t id;
	uint8_t addrs[0];
};

struct draft_sub_status {
	uint8_t id;
	uint16_t low_prio:1;
};

struct draft_sub_ids {
	uint8_t sub_count;
	struct draft_sub_status sub_status[0];
};

struct draft_close_sub_id {
	uint8_t id;
	int how;
};

struct draft_sub_tuple {
	uint8_t id;
	uint8_t prio;
	uint8_t addrs[0];
};

static void print(const char *name, const void *bytes, size_t size)
{
	const unsigned char *byte = bytes;
	size_t i;

	printf("%s = ", name);
	for (i = 0; i < size; i++)
		printf("%02x", byte[i]);
	printf("\n");
}

static char room[200];

#define FRESH(type) ((type *)memset(room, 0, sizeof(room)))

static size_t put_ipv4(void *place)
{
	struct sockaddr_in ends[2];

	memset(ends, 0, sizeof(ends));
	ends[0].sin_family = ends[1].sin_family = AF_INET;
	ends[0].sin_port = htons(12345);
	ends[1].sin_port = htons(1234);
	inet_pton(AF_INET, "10.0.0.1", &ends[0].sin_addr);
	inet_pton(AF_INET, "10.1.0.1", &ends[1].sin_addr);
	memcpy(place, ends, sizeof(ends));
	return (char *)place - room + sizeof(ends);
}

static size_t put_ipv6(void *place)
{
	struct sockaddr_in6 ends[2];

	memset(ends, 0, sizeof(ends));
	ends[0].sin6_family = ends[1].sin6_family = AF_INET6;
	ends[0].sin6_port = htons(12345);
	ends[1].sin6_port = htons(1234);
	inet_pton(AF_INET6, "fd00::1", &ends[0].sin6_addr);
	inet_pton(AF_INET6, "fe80::2", &ends[1].sin6_addr);
	ends[1].sin6_flowinfo = htonl(0x12345);
	ends[1].sin6_scope_id = 3;
	memcpy(place, ends, sizeof(ends));
	return (char *)place - room + sizeof(ends);
}

int main(void)
{
	struct kernel_sub_ids *kernel_ids = FRESH(struct kernel_sub_ids);
	struct draft_sub_ids *draft_ids;
	struct mptcp_sub_ids *ids;
	struct kernel_sub_tuple *kernel_tuple;
	struct draft_sub_tuple *draft_tuple;
	struct mptcp_sub_tuple *tuple;
	struct kernel_close_sub_id kernel_close = { .id = 7 };
	struct draft_close_sub_id *draft_close;
	struct mptcp_close_sub_id *close_id;
	struct mptcp_sub_getsockopt *sub_gso;
	struct mptcp_sub_setsockopt *sub_sso;

	kernel_ids->sub_count = 2;
	kernel_ids->sub_status[0] = (struct kernel_sub_status){
		.id = 7, .slave_sk = 1, .attached = 1, .low_prio = 1, .pre_established = 1 };
	kernel_ids->sub_status[1] = (struct kernel_sub_status){ .id = 1, .fully_established = 1, .attached = 1 };
	print("kernel sub_ids", room, sizeof(*kernel_ids) + 2 * sizeof(struct kernel_sub_status));
	draft_ids = FRESH(struct draft_sub_ids);
	draft_ids->sub_count = 2;
	draft_ids->sub_status[0] = (struct draft_sub_status){ .id = 7, .low_prio = 1 };
	draft_ids->sub_status[1] = (struct draft_sub_status){ .id = 1 };
	print("draft sub_ids", room, sizeof(*draft_ids) + 2 * sizeof(struct draft_sub_status));
	ids = FRESH(struct mptcp_sub_ids);
	ids->sub_count = 2;
	ids->sub_status[0] = (struct mptcp_sub_status){
		.id = 7, .slave_sk = 1, .attached = 1, .low_prio = 1, .pre_established = 1 };
	ids->sub_status[1] = (struct mptcp_sub_status){ .id = 1, .fully_established = 1, .attached = 1 };
	print("header sub_ids", room, sizeof(*ids) + 2 * sizeof(struct mptcp_sub_status));

	kernel_tuple = FRESH(struct kernel_sub_tuple);
	kernel_tuple->id = 7;
	print("kernel sub_tuple ipv4", room, put_ipv4(kernel_tuple->addrs));
	print("kernel sub_tuple ipv6", room, put_ipv6(kernel_tuple->addrs));
	draft_tuple = FRESH(struct draft_sub_tuple);
	draft_tuple->id = 7;
	draft_tuple->prio = 1;
	print("draft sub_tuple ipv4", room, put_ipv4(draft_tuple->addrs));
	print("draft sub_tuple ipv6", room, put_ipv6(draft_tuple->addrs));
	tuple = FRESH(struct mptcp_sub_tuple);
	tuple->id = 7;
	tuple->prio = 1;
	print("header sub_tuple ipv4", room, put_ipv4(tuple->addrs));
	print("header sub_tuple ipv6", room, put_ipv6(tuple->addrs));
	if (put_ipv4(mptcp_sub_tuple_local(tuple)) != MPTCP_SUB_TUPLE_SIZE(AF_INET) ||
	    put_ipv6(mptcp_sub_tuple_local(tuple)) != MPTCP_SUB_TUPLE_SIZE(AF_INET6) ||
	    ((struct sockaddr_in6 *)mptcp_sub_tuple_remote(tuple))->sin6_scope_id != 3)
		return 1;

	print("kernel close_sub_id", &kernel_close, sizeof(kernel_close));
	draft_close = FRESH(struct draft_close_sub_id);
	draft_close->id = 7;
	draft_close->how = SHUT_RDWR;
	print("draft close_sub_id", room, sizeof(*draft_close));
	close_id = FRESH(struct mptcp_close_sub_id);
	close_id->id = 7;
	close_id->how = MPTCP_RST;
	print("header close_sub_id", room, sizeof(*close_id));

	sub_gso = FRESH(struct mptcp_sub_getsockopt);
	sub_gso->id = 7;
	sub_gso->level = IPPROTO_TCP;
	sub_gso->optname = TCP_INFO;
	sub_gso->optval = (char *)0x112233445566;
	sub_gso->optlen = (unsigned int *)0x665544332211;
	print("sub_getsockopt", room, sizeof(*sub_gso));
	sub_sso = FRESH(struct mptcp_sub_setsockopt);
	sub_sso->id = 7;
	sub_sso->level = IPPROTO_IP;
	sub_sso->optname = 1; /* IP_TOS */
	sub_sso->optval = (char *)0x112233445566;
	sub_sso->optlen = 4;
	print("sub_setsockopt", room, sizeof(*sub_sso));
	return 0;
}
