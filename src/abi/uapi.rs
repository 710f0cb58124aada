//! Kernel constants, each group with its header and, where it matters, the first kernel that has it.
//! No logic. What the `libc` crate has is used from there.

/// `<linux/socket.h>`, the level of the MPTCP_* options.
pub const SOL_MPTCP: i32 = 284;

// <linux/mptcp.h>: socket options at SOL_MPTCP. The first three since 5.16, MPTCP_FULL_INFO since 6.5.
pub const MPTCP_INFO: i32 = 1;
pub const MPTCP_TCPINFO: i32 = 2;
pub const MPTCP_SUBFLOW_ADDRS: i32 = 3;
pub const MPTCP_FULL_INFO: i32 = 4;

/// In mptcpi_flags.
pub const MPTCP_INFO_FLAG_FALLBACK: u32 = 1 << 0;
pub const MPTCP_INFO_FLAG_REMOTE_KEY_RECEIVED: u32 = 1 << 1;

/// `<linux/tcp.h>`, at IPPROTO_TCP, since 6.10.
pub const TCP_IS_MPTCP: i32 = 43;

/// `<linux/tcp.h>`, at IPPROTO_TCP, since 6.15.
pub const TCP_RTO_MAX_MS: i32 = 44;

// <linux/bpf.h>: options at IPPROTO_TCP that only BPF programs can reach.
pub const TCP_BPF_IW: i32 = 1001;
pub const TCP_BPF_SNDCWND_CLAMP: i32 = 1002;
pub const TCP_BPF_DELACK_MAX: i32 = 1003;
pub const TCP_BPF_RTO_MIN: i32 = 1004;

/// `<net/tcp.h>`: the longest name of a congestion control, its NUL included.
pub const TCP_CA_NAME_MAX: usize = 16;

/// `<asm-generic/socket.h>`, at SOL_SOCKET, since 5.14.
pub const SO_NETNS_COOKIE: i32 = 71;

/// Likewise, since 6.0.
pub const SO_TXREHASH: i32 = 74;

/// Size of `struct __kernel_sockaddr_storage`.
pub const SOCKADDR_STORAGE: usize = 128;

/// `struct mptcp_full_info` up to the `struct mptcp_info` that ends it.
pub mod full_info {
    pub const SIZE_TCPINFO_KERNEL: usize = 0;
    pub const SIZE_TCPINFO_USER: usize = 4;
    pub const SIZE_SFINFO_USER: usize = 12;
    pub const NUM_SUBFLOWS: usize = 16;
    pub const SIZE_ARRAYS_USER: usize = 20;
    pub const SUBFLOW_INFO: usize = 24;
    pub const TCP_INFO: usize = 32;
    pub const MPTCP_INFO: usize = 40;
}

/// `struct mptcp_subflow_info`, the elements of MPTCP_FULL_INFO's first array.
pub mod subflow_info {
    pub const ID: usize = 0;
    pub const LOCAL: usize = 8;
    pub const REMOTE: usize = 136;
    pub const SIZE: usize = 264;
}

/// `struct mptcp_subflow_data`, the head of the replies to MPTCP_TCPINFO and MPTCP_SUBFLOW_ADDRS.
pub mod subflow_data {
    pub const SIZE_SUBFLOW_DATA: usize = 0;
    pub const NUM_SUBFLOWS: usize = 4;
    pub const SIZE_KERNEL: usize = 8;
    pub const SIZE_USER: usize = 12;
    pub const SIZE: usize = 16;
}

/// `enum` of TCP states in `<net/tcp_states.h>`, as in tcpi_state and idiag_state.
pub mod tcp_state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
    /// Our FIN is sent.
    pub const FIN_SENT: [u8; 4] = [FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING];
    pub const NEW_SYN_RECV: u8 = 12;
    const NAMES: [&str; 13] = [
        "UNKNOWN",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
        "NEW_SYN_RECV",
    ];

    /// A state by its name, without the prefix.
    pub fn name(state: u8) -> &'static str {
        NAMES.get(usize::from(state)).unwrap_or(&NAMES[0])
    }
}

/// `<linux/sock_diag.h>` and `<linux/inet_diag.h>`.
pub mod diag {
    pub const TCPDIAG_GETSOCK: u16 = 18;
    /// Size of `struct inet_diag_req`, which comes with TCPDIAG_GETSOCK.
    pub const OLD_REQUEST_SIZE: usize = 60;
    pub const SOCK_DIAG_BY_FAMILY: u16 = 20;
    pub const SOCK_DESTROY: u16 = 21;
    /// Size of `struct inet_diag_req_v2`.
    pub const REQUEST_SIZE: usize = 56;
    /// Size of `struct inet_diag_msg`.
    pub const MESSAGE_SIZE: usize = 72;
    pub const INET_DIAG_INFO: u16 = 2;
    /// With INET_DIAG_DCTCPINFO and INET_DIAG_BBRINFO: what the congestion control tells of itself.
    pub const INET_DIAG_VEGASINFO: u16 = 3;
    pub const INET_DIAG_CONG: u16 = 4;
    pub const INET_DIAG_TOS: u16 = 5;
    pub const INET_DIAG_TCLASS: u16 = 6;
    pub const INET_DIAG_SKMEMINFO: u16 = 7;
    pub const INET_DIAG_DCTCPINFO: u16 = 9;
    /// Comes without being asked for, to those with CAP_NET_ADMIN.
    pub const INET_DIAG_MARK: u16 = 15;
    pub const INET_DIAG_BBRINFO: u16 = 16;
    pub const INET_DIAG_ULP_INFO: u16 = 19;
    /// Since 5.9.
    pub const INET_DIAG_CGROUP_ID: u16 = 21;
    pub const INET_ULP_INFO_NAME: u16 = 1;
    pub const INET_ULP_INFO_MPTCP: u16 = 3;
    /// An attribute of the request: a protocol that does not fit into sdiag_protocol, since 5.9.
    pub const INET_DIAG_REQ_PROTOCOL: u16 = 3;
    /// sdiag_protocol of a request whose protocol is in that attribute.
    pub const IPPROTO_RAW: u8 = 255;
    pub const NOCOOKIE: u64 = u64::MAX;
    /// Multicast groups of what dies: TCP sockets over IPv4 and IPv6.
    pub const SKNLGRP_INET_TCP_DESTROY: u32 = 1;
    pub const SKNLGRP_INET6_TCP_DESTROY: u32 = 3;
}

/// Offsets in INET_DIAG_SKMEMINFO (SO_MEMINFO), the array SK_MEMINFO_* of `<linux/sock_diag.h>`.
pub mod meminfo {
    pub const RCVBUF: usize = 4;
    pub const SNDBUF: usize = 12;
}

/// `<linux/mptcp.h>`, what INET_ULP_INFO_MPTCP holds.
pub mod ulp {
    pub const ATTR_TOKEN_LOC: u16 = 2;
    pub const ATTR_FLAGS: u16 = 8;
    pub const ATTR_ID_REM: u16 = 9;
    pub const ATTR_ID_LOC: u16 = 10;
    pub const FLAG_MCAP_REM: u32 = 1 << 0;
    pub const FLAG_MCAP_LOC: u32 = 1 << 1;
    pub const FLAG_JOIN_REM: u32 = 1 << 2;
    pub const FLAG_JOIN_LOC: u32 = 1 << 3;
    pub const FLAG_BKUP_REM: u32 = 1 << 4;
    pub const FLAG_BKUP_LOC: u32 = 1 << 5;
    pub const FLAG_FULLY_ESTABLISHED: u32 = 1 << 6;
    pub const FLAG_CONNECTED: u32 = 1 << 7;
}

/// `<linux/genetlink.h>`: finding a family and its multicast groups by name.
pub mod ctrl {
    pub const GENL_ID_CTRL: u16 = 16;
    pub const VERSION: u8 = 2;
    pub const CMD_GETFAMILY: u8 = 3;
    pub const ATTR_FAMILY_ID: u16 = 1;
    pub const ATTR_FAMILY_NAME: u16 = 2;
    pub const ATTR_MCAST_GROUPS: u16 = 7;
    pub const ATTR_MCAST_GRP_NAME: u16 = 1;
    pub const ATTR_MCAST_GRP_ID: u16 = 2;
}

/// `<linux/mptcp_pm.h>` (`<linux/mptcp.h>` before 6.7): the generic netlink family of the path managers.
pub mod pm {
    pub const NAME: &str = "mptcp_pm";
    pub const EVENT_GROUP: &str = "mptcp_pm_events";
    pub const VERSION: u8 = 1;

    pub const CMD_ADD_ADDR: u8 = 1;
    pub const CMD_DEL_ADDR: u8 = 2;
    pub const CMD_GET_ADDR: u8 = 3;
    pub const CMD_FLUSH_ADDRS: u8 = 4;
    pub const CMD_SET_LIMITS: u8 = 5;
    pub const CMD_GET_LIMITS: u8 = 6;
    pub const CMD_SET_FLAGS: u8 = 7;
    pub const CMD_ANNOUNCE: u8 = 8;
    pub const CMD_REMOVE: u8 = 9;
    pub const CMD_SUBFLOW_CREATE: u8 = 10;
    pub const CMD_SUBFLOW_DESTROY: u8 = 11;

    pub const ATTR_ADDR: u16 = 1;
    pub const ATTR_RCV_ADD_ADDRS: u16 = 2;
    pub const ATTR_SUBFLOWS: u16 = 3;
    pub const ATTR_TOKEN: u16 = 4;
    pub const ATTR_LOC_ID: u16 = 5;
    pub const ATTR_ADDR_REMOTE: u16 = 6;

    pub const ADDR_FAMILY: u16 = 1;
    pub const ADDR_ID: u16 = 2;
    pub const ADDR_ADDR4: u16 = 3;
    pub const ADDR_ADDR6: u16 = 4;
    pub const ADDR_PORT: u16 = 5;
    pub const ADDR_FLAGS: u16 = 6;
    pub const ADDR_IF_IDX: u16 = 7;

    pub const FLAG_SIGNAL: u32 = 1 << 0;
    pub const FLAG_SUBFLOW: u32 = 1 << 1;
    pub const FLAG_BACKUP: u32 = 1 << 2;
    /// Since 5.15.
    pub const FLAG_FULLMESH: u32 = 1 << 3;
    /// Since 5.18; only the kernel makes such endpoints.
    pub const FLAG_IMPLICIT: u32 = 1 << 4;
    /// Since 6.18.
    pub const FLAG_LAMINAR: u32 = 1 << 5;

    /// The flags of an endpoint by their names, which `ip mptcp` uses too.
    pub const FLAGS: [(&str, u32); 6] = [
        ("signal", FLAG_SIGNAL),
        ("subflow", FLAG_SUBFLOW),
        ("backup", FLAG_BACKUP),
        ("fullmesh", FLAG_FULLMESH),
        ("implicit", FLAG_IMPLICIT),
        ("laminar", FLAG_LAMINAR),
    ];
}

/// `enum mptcp_event_type` and `enum mptcp_event_attr`. Listener events since 6.2.
pub mod event {
    pub const CREATED: u8 = 1;
    pub const ESTABLISHED: u8 = 2;
    pub const CLOSED: u8 = 3;
    pub const ANNOUNCED: u8 = 6;
    pub const REMOVED: u8 = 7;
    pub const SUB_ESTABLISHED: u8 = 10;
    pub const SUB_CLOSED: u8 = 11;
    pub const SUB_PRIORITY: u8 = 13;
    pub const LISTENER_CREATED: u8 = 15;
    pub const LISTENER_CLOSED: u8 = 16;

    pub const ATTR_TOKEN: u16 = 1;
    pub const ATTR_LOC_ID: u16 = 3;
    pub const ATTR_REM_ID: u16 = 4;
    pub const ATTR_SADDR4: u16 = 5;
    pub const ATTR_SADDR6: u16 = 6;
    pub const ATTR_DADDR4: u16 = 7;
    pub const ATTR_DADDR6: u16 = 8;
    pub const ATTR_SPORT: u16 = 9;
    pub const ATTR_DPORT: u16 = 10;
    pub const ATTR_BACKUP: u16 = 11;
    pub const ATTR_ERROR: u16 = 12;
    pub const ATTR_FLAGS: u16 = 13;
    pub const ATTR_IF_IDX: u16 = 15;
    pub const ATTR_RESET_REASON: u16 = 16;
    pub const ATTR_SERVER_SIDE: u16 = 18;

    /// In ATTR_FLAGS: the peer's MP_CAPABLE had the C bit.
    pub const FLAG_DENY_JOIN_ID0: u16 = 1 << 0;
    /// In ATTR_FLAGS; newer kernels say server side here instead of in ATTR_SERVER_SIDE.
    pub const FLAG_SERVER_SIDE: u16 = 1 << 1;
}

/// `<linux/rtnetlink.h>`: asking which source address a route would use; links and addresses that come and go.
pub mod rtnetlink {
    pub const RTM_NEWLINK: u16 = 16;
    pub const RTM_DELLINK: u16 = 17;
    pub const RTM_GETLINK: u16 = 18;
    pub const RTM_NEWADDR: u16 = 20;
    pub const RTM_DELADDR: u16 = 21;
    pub const RTM_GETADDR: u16 = 22;
    pub const RTNLGRP_LINK: u32 = 1;
    pub const RTNLGRP_IPV4_IFADDR: u32 = 5;
    pub const RTNLGRP_IPV6_IFADDR: u32 = 9;
    /// Size of `struct ifinfomsg`.
    pub const IFINFOMSG_SIZE: usize = 16;
    /// `<linux/if_link.h>`
    pub const IFLA_IFNAME: u16 = 3;
    /// Size of `struct ifaddrmsg`.
    pub const IFADDRMSG_SIZE: usize = 8;
    /// `<linux/if_addr.h>`
    pub const IFA_ADDRESS: u16 = 1;
    pub const IFA_LOCAL: u16 = 2;
    pub const IFA_FLAGS: u16 = 8;
    pub const RTM_GETROUTE: u16 = 26;
    /// Size of `struct rtmsg`; rtm_type is its byte 7.
    pub const RTMSG_SIZE: usize = 12;
    pub const RTMSG_TYPE: usize = 7;
    pub const RTN_LOCAL: u8 = 2;
    pub const RTA_DST: u16 = 1;
    pub const RTA_SRC: u16 = 2;
    pub const RTA_OIF: u16 = 4;
    pub const RTA_PREFSRC: u16 = 7;
}

/// The enhanced socket API of 2016: options at IPPROTO_TCP of the kernel of its authors, which upstream never had.
/// draft-hesmans-mptcp-socket and `python/mptcp/include/mptcp_enhanced_api.h` have other layouts of the same options.
pub mod enhanced_api {
    pub const MPTCP_GET_SUB_IDS: i32 = 66;
    pub const MPTCP_CLOSE_SUB_ID: i32 = 67;
    pub const MPTCP_GET_SUB_TUPLE: i32 = 68;
    pub const MPTCP_OPEN_SUB_TUPLE: i32 = 69;
    pub const MPTCP_SUB_GETSOCKOPT: i32 = 71;
    pub const MPTCP_SUB_SETSOCKOPT: i32 = 72;
    /// What our header adds to the six numbers.
    pub const HEADER: i32 = 0x4000;

    /// `struct mptcp_sub_status`: an id and a byte of flags.
    pub const STATUS_SIZE: usize = 2;
    pub const SLAVE_SK: u8 = 1 << 0;
    pub const FULLY_ESTABLISHED: u8 = 1 << 1;
    pub const ATTACHED: u8 = 1 << 2;
    pub const LOW_PRIO: u8 = 1 << 3;
    pub const PRE_ESTABLISHED: u8 = 1 << 4;
    /// The draft's only flag.
    pub const DRAFT_LOW_PRIO: u8 = 1 << 0;

    /// `struct mptcp_sub_ids`: a count in byte 0, and the array.
    pub const SUB_STATUS: usize = 2;

    /// `struct mptcp_close_sub_id` of the draft and of the header; the kernel's is the id alone.
    pub const HOW: usize = 4;
    pub const CLOSE_SUB_ID_SIZE: usize = 8;
    /// The draft's "RST" beside SHUT_RD, SHUT_WR and SHUT_RDWR; it gives no value, this is our header's.
    pub const MPTCP_RST: i32 = 3;

    /// `struct mptcp_sub_tuple`: the id in byte 0, then, but in the kernel's, the priority.
    pub const PRIO: usize = 1;
    pub const ADDRS_KERNEL: usize = 1;
    pub const ADDRS_DRAFT: usize = 2;
    pub const ADDRS_HEADER: usize = 4;

    /// `struct mptcp_sub_getsockopt` and `struct mptcp_sub_setsockopt` of 64-bit programs. `optlen` is a pointer in
    /// the first and a number in the second.
    pub const LEVEL: usize = 4;
    pub const OPTNAME: usize = 8;
    pub const OPTVAL: usize = 16;
    pub const OPTLEN: usize = 24;
    pub const SOCKOPT_SIZE: usize = 32;
}
