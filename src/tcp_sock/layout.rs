//! Where this kernel keeps what `tcp_info` tells, by its BTF, and `tcp_info` made from it as tcp_get_info() makes it.
//! Pure.

use std::net::{IpAddr, SocketAddr};

use super::connection_layout::ConnectionLayout;
use crate::abi::bytes;
use crate::abi::fields::Field;
use crate::abi::tcp_info::{self, TcpInfo};
use crate::bpf::btf::{Btf, BtfError, Member, Structure};

/// Kernels from 6.18 have TCP_ECN_MODE_RFC3168 and TCP_ECN_MODE_ACCECN, those before TCP_ECN_OK as the former.
const TCP_ECN_MODE_ANY: u64 = 1 | 1 << 4;
const TCP_ECN_SEEN: u64 = 1 << 3;

// enum tcp_chrono; chrono_stat begins with BUSY.
const TCP_CHRONO_BUSY: usize = 1;
const TCP_CHRONO_RWND_LIMITED: usize = 2;
const TCP_CHRONO_SNDBUF_LIMITED: usize = 3;

/// The largest copy that is believed to be of these structures: 6.18 has 2,304 and 272 bytes.
pub const LARGEST: usize = 8192;

/// What is copied at once, and what lies so near to it that it costs nothing more.
const WORD: usize = 8;
const CACHE_LINE: usize = 64;

/// The structures that a `tcp_sock` begins with, one in the other, and itself.
#[derive(Debug, Clone, Copy)]
enum Part {
    Common,
    Sock,
    InetConnection,
    Tcp,
}

/// What tcp_get_info() copies as it is: the field, the structure that it is in and the member.
const COPIED: &[(Field, Part, &str)] = {
    use tcp_info::field as f;
    use Part::{Common, InetConnection as CSK, Sock, Tcp as TP};
    &[
        (f::state, Common, "skc_state"),
        (f::ca_state, CSK, "icsk_ca_state"),
        (f::retransmits, CSK, "icsk_retransmits"),
        (f::probes, CSK, "icsk_probes_out"),
        (f::backoff, CSK, "icsk_backoff"),
        (f::delivery_rate_app_limited, TP, "rate_app_limited"),
        (f::fastopen_client_fail, TP, "fastopen_client_fail"),
        (f::snd_mss, TP, "mss_cache"),
        (f::rcv_mss, CSK, "icsk_ack.rcv_mss"),
        (f::unacked, TP, "packets_out"),
        (f::sacked, TP, "sacked_out"),
        (f::lost, TP, "lost_out"),
        (f::retrans, TP, "retrans_out"),
        (f::pmtu, CSK, "icsk_pmtu_cookie"),
        (f::rcv_ssthresh, TP, "rcv_ssthresh"),
        (f::snd_ssthresh, TP, "snd_ssthresh"),
        (f::snd_cwnd, TP, "snd_cwnd"),
        (f::advmss, TP, "advmss"),
        (f::reordering, TP, "reordering"),
        (f::rcv_space, TP, "rcvq_space.space"),
        (f::total_retrans, TP, "total_retrans"),
        (f::pacing_rate, Sock, "sk_pacing_rate"),
        (f::max_pacing_rate, Sock, "sk_max_pacing_rate"),
        (f::bytes_acked, TP, "bytes_acked"),
        (f::bytes_received, TP, "bytes_received"),
        (f::segs_out, TP, "segs_out"),
        (f::segs_in, TP, "segs_in"),
        (f::min_rtt, TP, "rtt_min.s[0].v"),
        (f::data_segs_in, TP, "data_segs_in"),
        (f::data_segs_out, TP, "data_segs_out"),
        (f::delivered, TP, "delivered"),
        (f::delivered_ce, TP, "delivered_ce"),
        (f::bytes_sent, TP, "bytes_sent"),
        (f::bytes_retrans, TP, "bytes_retrans"),
        (f::dsack_dups, TP, "dsack_dups"),
        (f::reord_seen, TP, "reord_seen"),
        (f::rcv_ooopack, TP, "rcv_ooopack"),
        (f::snd_wnd, TP, "snd_wnd"),
        (f::rcv_wnd, TP, "rcv_wnd"),
        (f::total_rto, TP, "total_rto"),
        (f::total_rto_recoveries, TP, "total_rto_recoveries"),
        (f::received_ce, TP, "received_ce"),
        (f::delivered_e1_bytes, TP, "delivered_ecn_bytes[0]"),
        (f::delivered_e0_bytes, TP, "delivered_ecn_bytes[1]"),
        (f::delivered_ce_bytes, TP, "delivered_ecn_bytes[2]"),
        (f::received_e1_bytes, TP, "received_ecn_bytes[0]"),
        (f::received_e0_bytes, TP, "received_ecn_bytes[1]"),
        (f::received_ce_bytes, TP, "received_ecn_bytes[2]"),
    ]
};

/// Members that tcp_get_info() computes with.
#[derive(Debug)]
struct Computed {
    tstamp_ok: Member,
    sack_ok: Member,
    wscale_ok: Member,
    snd_wscale: Member,
    rcv_wscale: Member,
    ecn_flags: Member,
    syn_data_acked: Member,
    /// Since 6.7.
    usec_ts: Option<Member>,
    /// Since 6.15.
    fastopen_child: Option<Member>,
    rto: Member,
    ato: Member,
    /// `icsk_rto_min` and `icsk_delack_max`, where tcpi_ato is no larger than they allow: since 6.7.
    delayed_ack: Option<(Member, Member)>,
    last_data_sent: Member,
    last_data_received: Member,
    last_ack_received: Member,
    srtt_us: Member,
    mdev_us: Member,
    rcv_rtt_us: Member,
    write_seq: Member,
    snd_nxt: Member,
    chrono_type: Member,
    chrono_start: Member,
    chrono_stat: [Member; 3],
    rate_delivered: Member,
    rate_interval_us: Member,
    mss: Member,
    /// Since 6.2.
    rehash: Option<(Member, Member)>,
    /// `total_rto_time` and `rto_stamp`, since 6.7.
    rto_time: Option<(Member, Member)>,
}

impl Computed {
    fn members(&self) -> Vec<Member> {
        let pair = |both: Option<(Member, Member)>| both.into_iter().flat_map(|(one, other)| [one, other]);
        let always = [
            self.tstamp_ok,
            self.sack_ok,
            self.wscale_ok,
            self.snd_wscale,
            self.rcv_wscale,
            self.ecn_flags,
            self.syn_data_acked,
            self.rto,
            self.ato,
            self.last_data_sent,
            self.last_data_received,
            self.last_ack_received,
            self.srtt_us,
            self.mdev_us,
            self.rcv_rtt_us,
            self.write_seq,
            self.snd_nxt,
            self.chrono_type,
            self.chrono_start,
            self.rate_delivered,
            self.rate_interval_us,
            self.mss,
        ];
        let newer = self.usec_ts.into_iter().chain(self.fastopen_child);
        let pairs = pair(self.delayed_ack).chain(pair(self.rehash)).chain(pair(self.rto_time));
        always.into_iter().chain(self.chrono_stat).chain(newer).chain(pairs).collect()
    }
}

/// Members of `mptcp_subflow_context`.
#[derive(Debug)]
struct Subflow {
    token: Member,
    local_id: Member,
    remote_id: Member,
    request_backup: Member,
    backup: Member,
    /// Since 6.4.
    id: Option<Member>,
    tcp_sock: Member,
    /// The address of the `mptcp_sock`.
    conn: Member,
}

/// Members of `sock_common` and `inet_sock`.
#[derive(Debug)]
struct Ends {
    family: Member,
    /// In the byte order of the network, like all that follow.
    local: Member,
    remote: Member,
    local_ipv6: Member,
    remote_ipv6: Member,
    remote_port: Member,
    /// `inet_sport`: `skc_num` is 0 once the port was given back.
    local_port: Member,
}

impl Ends {
    fn new(common: &Structure<'_>, inet_connection: &Structure<'_>) -> Result<Ends, BtfError> {
        Ok(Ends {
            family: common.member("skc_family")?,
            local: common.member("skc_rcv_saddr")?,
            remote: common.member("skc_daddr")?,
            local_ipv6: common.member("skc_v6_rcv_saddr")?,
            remote_ipv6: common.member("skc_v6_daddr")?,
            remote_port: common.member("skc_dport")?,
            local_port: inet_connection.member("icsk_inet.inet_sport")?,
        })
    }
}

/// What a `mptcp_subflow_context` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubflowState {
    pub token: u32,
    pub local_id: u8,
    pub remote_id: u8,
    /// By our choice, and by the peer's.
    pub backup: bool,
    pub peer_backup: bool,
    pub id: Option<u32>,
    /// The address of its connection's `mptcp_sock`; 0 while there is none.
    pub connection: u64,
}

/// When the copy was made, in the units that the members are in.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub jiffies: u32,
    pub ms: u32,
}

/// The layout of one kernel.
#[derive(Debug)]
pub struct Layout {
    pub socket_size: usize,
    pub context_size: usize,
    /// `sk_cookie`.
    pub cookie: Member,
    /// `icsk_ulp_data`: the address of the `mptcp_subflow_context`.
    pub context: Member,
    /// `skc_net.net`: the address of the `struct net`.
    pub net: Member,
    /// `net_cookie`, of the `struct net`.
    pub net_cookie: Member,
    /// The typedef of the tracepoint inet_sock_set_state.
    pub set_state: u32,
    ends: Ends,
    copied: Vec<(Field, Member)>,
    computed: Computed,
    subflow: Subflow,
    /// How much of `tcp_info` this kernel has.
    length: usize,
    /// Jiffies a second.
    hz: u64,
    /// Absent where this kernel's `mptcp_sock` lacks what a `mptcp_info` is made from.
    pub connection: Option<ConnectionLayout>,
}

impl Layout {
    pub fn new(btf: &Btf<'_>, hz: u64) -> Result<Layout, BtfError> {
        let mut length = btf.structure("tcp_info")?.size().min(tcp_info::SIZE);
        let (common, sock) = (btf.structure("sock_common")?, btf.structure("sock")?);
        let (inet_connection, tcp) = (btf.structure("inet_connection_sock")?, btf.structure("tcp_sock")?);
        let context = btf.structure("mptcp_subflow_context")?;
        let csk = |path| inet_connection.member(path);
        let tp = |path| tcp.member(path);
        let both =
            |first: Result<Member, BtfError>, second: Result<Member, BtfError>| first.ok().zip(second.ok());
        let rto_time = both(tp("total_rto_time"), tp("rto_stamp"));
        let delayed_ack = both(csk("icsk_rto_min"), csk("icsk_delack_max"));
        let computed = Computed {
            tstamp_ok: tp("rx_opt.tstamp_ok")?,
            sack_ok: tp("rx_opt.sack_ok")?,
            wscale_ok: tp("rx_opt.wscale_ok")?,
            snd_wscale: tp("rx_opt.snd_wscale")?,
            rcv_wscale: tp("rx_opt.rcv_wscale")?,
            ecn_flags: tp("ecn_flags")?,
            syn_data_acked: tp("syn_data_acked")?,
            usec_ts: tp("tcp_usec_ts").ok(),
            fastopen_child: tp("syn_fastopen_child").ok(),
            rto: csk("icsk_rto")?,
            ato: csk("icsk_ack.ato")?,
            // Both came with the same version.
            delayed_ack: rto_time.and(delayed_ack),
            last_data_sent: tp("lsndtime")?,
            last_data_received: csk("icsk_ack.lrcvtime")?,
            last_ack_received: tp("rcv_tstamp")?,
            srtt_us: tp("srtt_us")?,
            mdev_us: tp("mdev_us")?,
            rcv_rtt_us: tp("rcv_rtt_est.rtt_us")?,
            write_seq: tp("write_seq")?,
            snd_nxt: tp("snd_nxt")?,
            chrono_type: tp("chrono_type")?,
            chrono_start: tp("chrono_start")?,
            chrono_stat: [tp("chrono_stat[0]")?, tp("chrono_stat[1]")?, tp("chrono_stat[2]")?],
            rate_delivered: tp("rate_delivered")?,
            rate_interval_us: tp("rate_interval_us")?,
            mss: tp("mss_cache")?,
            rehash: both(tp("plb_rehash"), tp("timeout_rehash")),
            rto_time,
        };
        let mut copied = Vec::new();
        for (field, part, path) in COPIED {
            let structure = match part {
                Part::Common => &common,
                Part::Sock => &sock,
                Part::InetConnection => &inet_connection,
                Part::Tcp => &tcp,
            };
            match structure.member(path) {
                Ok(member) => copied.push((*field, member)),
                // A newer field that cannot be had: the structure ends before it.
                Err(_) if field.since_size > tcp_info::FIELDS[0].since_size => {
                    length = length.min(before(field.since_size));
                }
                Err(error) => return Err(error),
            }
        }
        for (field, has) in [
            (tcp_info::field::rehash, computed.rehash.is_some()),
            (tcp_info::field::total_rto_time, computed.rto_time.is_some()),
        ] {
            if !has {
                length = length.min(before(field.since_size));
            }
        }
        let subflow = Subflow {
            token: context.member("token")?,
            local_id: context.member("local_id")?,
            remote_id: context.member("remote_id")?,
            request_backup: context.member("request_bkup")?,
            backup: context.member("backup")?,
            id: context.member("subflow_id").ok(),
            tcp_sock: context.member("tcp_sock")?,
            conn: context.member("conn")?,
        };
        let (socket_size, context_size) = (tcp.size(), context.size());
        if socket_size > LARGEST || context_size > LARGEST {
            return Err(BtfError::Malformed("a socket is larger than any kernel's"));
        }
        Ok(Layout {
            socket_size,
            context_size,
            cookie: common.member("skc_cookie")?,
            context: csk("icsk_ulp_data")?,
            net: common.member("skc_net.net")?,
            net_cookie: btf.structure("net")?.member("net_cookie")?,
            set_state: btf.typedef_id("btf_trace_inet_sock_set_state")?,
            ends: Ends::new(&common, &inet_connection)?,
            copied,
            computed,
            subflow,
            length,
            hz: hz.max(1),
            connection: ConnectionLayout::new(btf, hz).ok(),
        })
    }

    /// The parts of a `tcp_sock` that [`Layout::tcp_info`] and [`Layout::state`] need, and where the context is: offsets and
    /// sizes in whole words. The cache lines in between are not fetched, which the sender's processor may be writing.
    pub fn parts(&self) -> Vec<(usize, usize)> {
        let copied = self.copied.iter().map(|(_, member)| *member);
        let members = copied.chain(self.computed.members()).chain([self.context]);
        let mut words: Vec<(usize, usize)> = members
            .map(|member| {
                let end = (member.offset() + member.size()).next_multiple_of(WORD).min(self.socket_size);
                (member.offset() / WORD * WORD, end)
            })
            .collect();
        words.sort_unstable();
        let mut parts: Vec<(usize, usize)> = Vec::new();
        for (begin, end) in words {
            match parts.last_mut() {
                Some((_, last)) if begin < *last + CACHE_LINE => *last = end.max(*last),
                _ => parts.push((begin, end)),
            }
        }
        parts.into_iter().map(|(begin, end)| (begin, end - begin)).collect()
    }

    /// The state of a copy of a `tcp_sock`.
    pub fn state(&self, socket: &[u8]) -> u8 {
        self.copied.first().map_or(0, |(_, member)| member.read(socket) as u8)
    }

    /// The local and the remote end of a copy of a `tcp_sock`.
    pub fn ends(&self, socket: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
        let Ends { family, local, remote, local_ipv6, remote_ipv6, remote_port, local_port } = &self.ends;
        let address = |ipv4: Member, ipv6: Member| -> Option<IpAddr> {
            if family.read(socket) == libc::AF_INET as u64 {
                return bytes::ipv4(socket, ipv4.offset()).map(IpAddr::from);
            }
            bytes::ipv6(socket, ipv6.offset()).map(IpAddr::from)
        };
        let port = |member: Member| bytes::be16(socket, member.offset());
        Some((
            SocketAddr::new(address(*local, *local_ipv6)?, port(*local_port)?),
            SocketAddr::new(address(*remote, *remote_ipv6)?, port(*remote_port)?),
        ))
    }

    /// What the context says, if it is that of the `tcp_sock` at `address`: one that was read as it was freed is not.
    pub fn subflow(&self, context: &[u8], address: u64) -> Option<SubflowState> {
        let Subflow { token, local_id, remote_id, request_backup, backup, id, tcp_sock, conn } =
            &self.subflow;
        (tcp_sock.read(context) == address).then(|| SubflowState {
            token: token.read(context) as u32,
            // Less than 0 until it is known, when inet_diag says 0.
            local_id: u8::try_from(local_id.read(context)).unwrap_or(0),
            remote_id: remote_id.read(context) as u8,
            backup: request_backup.read(context) != 0,
            peer_backup: backup.read(context) != 0,
            id: id.map(|id| id.read(context) as u32),
            connection: conn.read(context),
        })
    }

    /// `tcp_info` from a copy of a `tcp_sock`, as tcp_get_info() makes it.
    pub fn tcp_info(&self, socket: &[u8], now: Moment) -> TcpInfo {
        use tcp_info::field as f;
        let c = &self.computed;
        let get = |member: Member| member.read(socket);
        let mut info = Info { bytes: [0; tcp_info::SIZE] };
        for (field, member) in &self.copied {
            info.put(field, member.read(socket));
        }

        let mut options = 0;
        let mut option = |bit: u32, is_set: bool| options |= u64::from(is_set) << bit;
        option(0, get(c.tstamp_ok) != 0);
        option(1, get(c.sack_ok) != 0);
        option(2, get(c.wscale_ok) != 0);
        option(3, get(c.ecn_flags) & TCP_ECN_MODE_ANY != 0);
        option(4, get(c.ecn_flags) & TCP_ECN_SEEN != 0);
        option(5, get(c.syn_data_acked) != 0);
        option(6, c.usec_ts.is_some_and(|member| get(member) != 0));
        option(7, c.fastopen_child.is_some_and(|member| get(member) != 0));
        info.put(&f::options, options);
        if get(c.wscale_ok) != 0 {
            info.put(&f::snd_wscale, get(c.snd_wscale));
            info.put(&f::rcv_wscale, get(c.rcv_wscale));
        }

        info.put(&f::rto, self.us(get(c.rto)));
        let ato = match c.delayed_ack {
            // tcp_delack_max(); a minimum that a route sets is not seen.
            Some((rto_min, delack_max)) => {
                get(c.ato).min(get(delack_max)).min(get(rto_min).max(2).saturating_sub(1))
            }
            None => get(c.ato),
        };
        info.put(&f::ato, self.us(ato));
        let since = |member: Member| u64::from(now.jiffies.wrapping_sub(get(member) as u32));
        info.put(&f::last_data_sent, self.ms(since(c.last_data_sent)));
        info.put(&f::last_data_recv, self.ms(since(c.last_data_received)));
        info.put(&f::last_ack_recv, self.ms(since(c.last_ack_received)));
        info.put(&f::rtt, get(c.srtt_us) >> 3);
        info.put(&f::rttvar, get(c.mdev_us) >> 2);
        info.put(&f::rcv_rtt, get(c.rcv_rtt_us) >> 3);
        let not_sent = (get(c.write_seq) as u32).wrapping_sub(get(c.snd_nxt) as u32) as i32;
        info.put(&f::notsent_bytes, not_sent.max(0) as u64);

        let running = get(c.chrono_type) as usize;
        let chrono = |kind: usize| {
            let so_far = if kind == running { since(c.chrono_start) } else { 0 };
            self.us(get(c.chrono_stat[kind - TCP_CHRONO_BUSY]) + so_far)
        };
        let (busy, window, buffer) =
            (chrono(TCP_CHRONO_BUSY), chrono(TCP_CHRONO_RWND_LIMITED), chrono(TCP_CHRONO_SNDBUF_LIMITED));
        info.put(&f::busy_time, busy + window + buffer);
        info.put(&f::rwnd_limited, window);
        info.put(&f::sndbuf_limited, buffer);

        let (delivered, interval_us) = (get(c.rate_delivered), get(c.rate_interval_us));
        if let Some(rate) =
            delivered.wrapping_mul(get(c.mss)).wrapping_mul(1_000_000).checked_div(interval_us)
        {
            info.put(&f::delivery_rate, rate);
        }
        if let Some((plb, timeout)) = c.rehash {
            info.put(&f::rehash, get(plb) + get(timeout));
        }
        if let Some((total, stamp)) = c.rto_time {
            let stamp = get(stamp) as u32;
            let so_far = if stamp == 0 { 0 } else { now.ms.wrapping_sub(stamp) };
            info.put(&f::total_rto_time, u64::from((get(total) as u32).wrapping_add(so_far)));
        }
        TcpInfo::decode(&info.bytes[..self.length])
    }

    fn us(&self, jiffies: u64) -> u64 {
        jiffies * 1_000_000 / self.hz
    }

    fn ms(&self, jiffies: u64) -> u64 {
        milliseconds(jiffies, self.hz)
    }
}

/// As jiffies_to_msecs() rounds.
pub fn milliseconds(jiffies: u64, hz: u64) -> u64 {
    (jiffies * 1000).div_ceil(hz)
}

/// The largest size that a kernel's `tcp_info` had before it had `size`.
fn before(size: usize) -> usize {
    tcp_info::FIELDS.iter().map(|field| field.since_size).filter(|since| *since < size).max().unwrap_or(0)
}

/// A `tcp_info` that is being made.
struct Info {
    bytes: [u8; tcp_info::SIZE],
}

impl Info {
    fn put(&mut self, field: &Field, value: u64) {
        field.write(&mut self.bytes, value & field.most());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::btf;

    fn layout() -> Option<Layout> {
        let bytes = std::fs::read(btf::KERNEL).ok()?;
        Some(Layout::new(&Btf::parse(&bytes).unwrap(), 250).unwrap())
    }

    /// Every field of `tcp_info` is either copied or computed, except what the kernel leaves at 0.
    #[test]
    fn no_field_is_forgotten() {
        let Some(layout) = layout() else { return eprintln!("skipped: no {}", btf::KERNEL) };
        let socket = vec![0xff; layout.socket_size];
        let info = layout.tcp_info(&socket, Moment { jiffies: 1000, ms: 1000 });
        let unset: Vec<&str> = tcp_info::FIELDS
            .iter()
            .filter(|field| field.read(info.bytes()) == Some(0))
            .map(|field| field.name)
            .collect();
        // write_seq is snd_nxt here, so nothing waits to be sent.
        assert_eq!(unset, ["fackets", "last_ack_sent", "notsent_bytes"]);
    }

    #[test]
    fn the_parts_are_enough() {
        let Some(layout) = layout() else { return eprintln!("skipped: no {}", btf::KERNEL) };
        let whole: Vec<u8> = (0..layout.socket_size).map(|at| (at * 7 + at / 256) as u8).collect();
        let mut copy = vec![0; layout.socket_size];
        for (at, size) in layout.parts() {
            copy[at..at + size].copy_from_slice(&whole[at..at + size]);
        }
        let now = Moment { jiffies: 77, ms: 99 };
        assert_eq!(layout.tcp_info(&copy, now).bytes(), layout.tcp_info(&whole, now).bytes());
        assert_eq!(layout.state(&copy), layout.state(&whole));
        assert_eq!(layout.context.read(&copy), layout.context.read(&whole));
        let copied: usize = layout.parts().iter().map(|(_, size)| size).sum();
        assert!(copied < layout.socket_size, "{:?}", layout.parts());
    }

    #[test]
    fn times_are_counted_in_jiffies() {
        let Some(layout) = layout() else { return eprintln!("skipped: no {}", btf::KERNEL) };
        let socket = vec![0; layout.socket_size];
        let info = layout.tcp_info(&socket, Moment { jiffies: 3, ms: 1 });
        assert_eq!(tcp_info::field::last_data_sent.read(info.bytes()), Some(12));
        assert_eq!(tcp_info::field::busy_time.read(info.bytes()), Some(0));
        assert_eq!(tcp_info::field::total_rto_time.read(info.bytes()).unwrap_or(0), 0);
    }

    #[test]
    fn a_context_of_another_socket_is_told() {
        let Some(layout) = layout() else { return eprintln!("skipped: no {}", btf::KERNEL) };
        let context = vec![0x11; layout.context_size];
        assert_eq!(layout.subflow(&context, 7), None);
        let found = layout.subflow(&context, 0x1111_1111_1111_1111).unwrap();
        assert_eq!((found.token, found.remote_id), (0x1111_1111, 0x11));
    }
}
