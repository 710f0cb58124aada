//! Where this kernel keeps what the programs read, by its BTF. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::abi::bytes;
use crate::bpf::btf::{Btf, BtfError, Member};
use crate::bpf::TcpIterator;

/// The largest copy that is believed to be of these structures: 6.18 has 2,304, 272 and 1,936 bytes.
const LARGEST: usize = 8192;

/// The tracepoints, by the ids of their typedefs.
#[derive(Debug)]
pub struct Tracepoints {
    pub sendmsg_frag: u32,
    pub get_send: u32,
    pub probe: u32,
    pub retransmit: u32,
    /// Whether tcp_retransmit_skb says how the transmission ended, as a third argument: since 6.15.
    pub retransmit_tells_error: bool,
    pub mapping: u32,
    pub ack_update: u32,
}

/// Members of `tcp_sock`, of what it begins with included.
#[derive(Debug)]
pub struct Tcp {
    pub size: usize,
    pub cookie: Member,
    pub net: Member,
    pub wmem_queued: Member,
    pub pacing_rate: Member,
    pub context: Member,
    pub is_mptcp: Member,
    pub write_seq: Member,
    pub write_queue_tail: Member,
    pub receive_queue_head: Member,
    pub snd_una: Member,
    pub snd_nxt: Member,
    pub rcv_nxt: Member,
    pub snd_wnd: Member,
    pub snd_cwnd: Member,
    pub snd_ssthresh: Member,
    pub srtt_us: Member,
    pub packets_out: Member,
    pub lost_out: Member,
    pub retrans_out: Member,
    pub total_retrans: Member,
    family: Member,
    local: Member,
    remote: Member,
    local_ipv6: Member,
    remote_ipv6: Member,
    pub local_port: Member,
    remote_port: Member,
}

/// Members of `mptcp_subflow_context`.
#[derive(Debug)]
pub struct Context {
    pub size: usize,
    pub tcp_sock: Member,
    pub connection: Member,
    pub avg_pacing_rate: Member,
    pub backup: Member,
    pub request_backup: Member,
    pub stale: Member,
    pub local_id: Member,
    pub remote_id: Member,
    pub request_join: Member,
    pub is_join: Member,
    /// The number before the first of a mapping, of what the other side sends.
    pub ssn_offset: Member,
}

/// Members of `mptcp_sock`.
#[derive(Debug)]
pub struct Msk {
    pub size: usize,
    pub token: Member,
    pub local_key: Member,
    pub remote_key: Member,
    pub snd_una: Member,
    pub ack_seq: Member,
    pub server_side: Member,
    pub csum_enabled: Member,
}

/// Members of `mptcp_ext`: a mapping, as a segment carries it.
#[derive(Debug)]
pub struct Mapping {
    pub data_seq: Member,
    pub subflow_seq: Member,
    pub data_len: Member,
    pub data_fin: Member,
}

/// Members of `sk_buff`, and of its extensions.
#[derive(Debug)]
pub struct Skb {
    pub len: Member,
    pub seq: usize,
    pub extensions: Member,
    /// Where a `skb_ext` has the offset of the `mptcp_ext`, in units of eight bytes.
    pub mptcp_offset: usize,
}

#[derive(Debug)]
pub struct Layout {
    pub tracepoints: Tracepoints,
    pub tcp: Tcp,
    pub context: Context,
    pub msk: Msk,
    pub mapping: Mapping,
    pub skb: Skb,
    /// `net_cookie`, of `struct net`.
    pub net_cookie: Member,
    /// The kernel function of the iterator over TCP sockets, where the kernel may give data to the subflow that it chose
    /// last without looking at its candidates (Linux 6.1 does): who sends next must be known before it does.
    pub iterator: Option<u32>,
}

impl Layout {
    pub fn new(btf: &Btf<'_>) -> Result<Layout, BtfError> {
        let tracepoint = |name: &str| btf.typedef_id(&format!("btf_trace_{name}"));
        let retransmit = tracepoint("tcp_retransmit_skb")?;
        let tracepoints = Tracepoints {
            sendmsg_frag: tracepoint("mptcp_sendmsg_frag")?,
            get_send: tracepoint("mptcp_subflow_get_send")?,
            probe: tracepoint("tcp_probe")?,
            retransmit,
            retransmit_tells_error: btf.tracepoint_arguments(retransmit) == Some(3),
            mapping: tracepoint("get_mapping_status")?,
            ack_update: tracepoint("ack_update_msk")?,
        };
        let (common, sock) = (btf.structure("sock_common")?, btf.structure("sock")?);
        let (inet, inet_connection) = (btf.structure("inet_sock")?, btf.structure("inet_connection_sock")?);
        let tcp = btf.structure("tcp_sock")?;
        let tp = |path| tcp.member(path);
        let tcp = Tcp {
            size: tcp.size(),
            cookie: common.member("skc_cookie")?,
            net: common.member("skc_net.net")?,
            wmem_queued: sock.member("sk_wmem_queued")?,
            pacing_rate: sock.member("sk_pacing_rate")?,
            write_queue_tail: sock.member("sk_write_queue.prev")?,
            receive_queue_head: sock.member("sk_receive_queue.next")?,
            context: inet_connection.member("icsk_ulp_data")?,
            is_mptcp: tp("is_mptcp")?,
            write_seq: tp("write_seq")?,
            snd_una: tp("snd_una")?,
            snd_nxt: tp("snd_nxt")?,
            rcv_nxt: tp("rcv_nxt")?,
            snd_wnd: tp("snd_wnd")?,
            snd_cwnd: tp("snd_cwnd")?,
            snd_ssthresh: tp("snd_ssthresh")?,
            srtt_us: tp("srtt_us")?,
            packets_out: tp("packets_out")?,
            lost_out: tp("lost_out")?,
            retrans_out: tp("retrans_out")?,
            total_retrans: tp("total_retrans")?,
            family: common.member("skc_family")?,
            local: common.member("skc_rcv_saddr")?,
            remote: common.member("skc_daddr")?,
            local_ipv6: common.member("skc_v6_rcv_saddr")?,
            remote_ipv6: common.member("skc_v6_daddr")?,
            local_port: inet.member("inet_sport")?,
            remote_port: common.member("skc_dport")?,
        };
        let context = btf.structure("mptcp_subflow_context")?;
        let context = Context {
            size: context.size(),
            tcp_sock: context.member("tcp_sock")?,
            connection: context.member("conn")?,
            avg_pacing_rate: context.member("avg_pacing_rate")?,
            backup: context.member("backup")?,
            request_backup: context.member("request_bkup")?,
            stale: context.member("stale")?,
            local_id: context.member("local_id")?,
            remote_id: context.member("remote_id")?,
            request_join: context.member("request_join")?,
            is_join: context.member("mp_join")?,
            ssn_offset: context.member("ssn_offset")?,
        };
        let msk = btf.structure("mptcp_sock")?;
        let msk = Msk {
            size: msk.size(),
            token: msk.member("token")?,
            local_key: msk.member("local_key")?,
            remote_key: msk.member("remote_key")?,
            snd_una: msk.member("snd_una")?,
            ack_seq: msk.member("ack_seq")?,
            server_side: msk.member("pm.server_side")?,
            csum_enabled: msk.member("csum_enabled")?,
        };
        if [tcp.size, context.size, msk.size].iter().any(|size| *size > LARGEST) {
            return Err(BtfError::Malformed("a socket is larger than any kernel's"));
        }
        let mapping = btf.structure("mptcp_ext")?;
        let mapping = Mapping {
            data_seq: mapping.member("data_seq")?,
            subflow_seq: mapping.member("subflow_seq")?,
            data_len: mapping.member("data_len")?,
            data_fin: mapping.member("data_fin")?,
        };
        let (skb, extensions) = (btf.structure("sk_buff")?, btf.structure("skb_ext")?);
        let mptcp = btf.enumerator("skb_ext_id", "SKB_EXT_MPTCP")? as usize;
        let skb = Skb {
            len: skb.member("len")?,
            seq: skb.member("cb")?.offset() + btf.structure("tcp_skb_cb")?.member("seq")?.offset(),
            extensions: skb.member("extensions")?,
            mptcp_offset: extensions.member("offset")?.offset() + mptcp,
        };
        let net_cookie = btf.structure("net")?.member("net_cookie")?;
        // `last_snd` is the subflow to which the next data may go without a choice.
        let iterator = match btf.structure("mptcp_sock")?.member("last_snd") {
            Ok(_) => Some(btf.function_id(TcpIterator::TARGET)?),
            Err(_) => None,
        };
        Ok(Layout { tracepoints, tcp, context, msk, mapping, skb, net_cookie, iterator })
    }

    /// The local and the remote end of a copy of a `tcp_sock`.
    pub fn ends(&self, socket: &[u8]) -> Option<[SocketAddr; 2]> {
        let tcp = &self.tcp;
        let address = |ipv4: Member, ipv6: Member| -> Option<IpAddr> {
            if tcp.family.read(socket) == libc::AF_INET as u64 {
                return bytes::ipv4(socket, ipv4.offset()).map(IpAddr::from);
            }
            bytes::ipv6(socket, ipv6.offset()).map(|address| IpAddr::from(address).to_canonical())
        };
        let port = |member: Member| bytes::be16(socket, member.offset());
        Some([
            SocketAddr::new(address(tcp.local, tcp.local_ipv6)?, port(tcp.local_port)?),
            SocketAddr::new(address(tcp.remote, tcp.remote_ipv6)?, port(tcp.remote_port)?),
        ])
    }
}
