/*
 * The enhanced socket API for Multipath TCP of 2016, for programs that run under `mptcp run`.
 *
 * Six options at level IPPROTO_TCP. MPTCP_SUB_SETSOCKOPT is one of setsockopt(2), the others are of getsockopt(2), since
 * their buffers travel both ways. The numbers are those of 2016 with 0x4000 added, which says that the structures lie in
 * memory as here; programs with the numbers and structures of 2016 are served too.
 *
 * For 64-bit little-endian programs. A connection that is not Multipath TCP has EOPNOTSUPP, an unknown subflow and a
 * buffer that is too short have EINVAL.
 */
#ifndef MPTCP_ENHANCED_API_H
#define MPTCP_ENHANCED_API_H

#include <stdint.h>
#include <netinet/in.h>
#include <sys/socket.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MPTCP_GET_SUB_IDS	(0x4000 + 66)
#define MPTCP_CLOSE_SUB_ID	(0x4000 + 67)
#define MPTCP_GET_SUB_TUPLE	(0x4000 + 68)
#define MPTCP_OPEN_SUB_TUPLE	(0x4000 + 69)
#define MPTCP_SUB_GETSOCKOPT	(0x4000 + 71)
#define MPTCP_SUB_SETSOCKOPT	(0x4000 + 72)

/* The drafts' other spelling. */
#define MPTCP_CLOSE_SUBFLOW	MPTCP_CLOSE_SUB_ID

/* One subflow. Ids are 1 to 255, and a subflow keeps its own for its life. */
struct mptcp_sub_status {
	uint8_t		id;
	uint16_t	slave_sk:1,		/* joined by MP_JOIN */
			fully_established:1,	/* the peer confirmed Multipath TCP on it */
			attached:1,		/* in the connection's list: always */
			low_prio:1,		/* a backup by our choice */
			pre_established:1;	/* joined by us, the fourth ACK is missing */
};

/* MPTCP_GET_SUB_IDS, out: needs 2 + 2 * sub_count bytes. The newest subflow comes first. */
struct mptcp_sub_ids {
	uint8_t			sub_count;
	struct mptcp_sub_status	sub_status[];
};

/* MPTCP_CLOSE_SUB_ID, in. How: SHUT_RD, SHUT_WR and SHUT_RDWR all close the subflow, as does any other value, so that
 * a program may leave it out; MPTCP_RST resets it. */
#define MPTCP_RST		3

struct mptcp_close_sub_id {
	uint8_t	id;
	int	how;
};

/*
 * MPTCP_GET_SUB_TUPLE, in: id. Out: the rest. Needs sizeof(struct mptcp_sub_tuple) and two addresses.
 * MPTCP_OPEN_SUB_TUPLE, in: prio, 1 for a backup, and both addresses. Out: id. It returns when the SYN is sent.
 *
 * The local address comes first. IPv6 addresses lie behind one another as IPv4's do, two struct sockaddr_in6: use
 * mptcp_sub_tuple_local() and mptcp_sub_tuple_remote().
 */
struct mptcp_sub_tuple {
	uint8_t			id;
	uint8_t			prio;
	struct sockaddr_in	addrs[];
};

/* The size of a tuple of two addresses of one family. */
#define MPTCP_SUB_TUPLE_SIZE(family) \
	(sizeof(struct mptcp_sub_tuple) + \
	 2 * ((family) == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in)))

static __inline__ struct sockaddr *mptcp_sub_tuple_local(struct mptcp_sub_tuple *tuple)
{
	return (struct sockaddr *)(void *)tuple->addrs;
}

/* Of a tuple that has its local address already. */
static __inline__ struct sockaddr *mptcp_sub_tuple_remote(struct mptcp_sub_tuple *tuple)
{
	char *addrs = (char *)tuple->addrs;

	if (mptcp_sub_tuple_local(tuple)->sa_family == AF_INET6)
		return (struct sockaddr *)(void *)(addrs + sizeof(struct sockaddr_in6));
	return (struct sockaddr *)(void *)(addrs + sizeof(struct sockaddr_in));
}

/* MPTCP_SUB_GETSOCKOPT: getsockopt of one subflow. What it reads comes through the pointers. */
struct mptcp_sub_getsockopt {
	uint8_t		id;
	int		level;
	int		optname;
	char		*optval;
	unsigned int	*optlen;
};

/* MPTCP_SUB_SETSOCKOPT: setsockopt of one subflow. */
struct mptcp_sub_setsockopt {
	uint8_t		id;
	int		level;
	int		optname;
	char		*optval;
	unsigned int	optlen;
};

#ifdef __cplusplus
}
#endif

#endif
