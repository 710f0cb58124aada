//! Socket options as the kernel's headers name them, and what reads each of them on one subflow. Pure.

use crate::abi::bytes;
use crate::abi::tcp_info;
use crate::abi::uapi::{self, meminfo};
use crate::netlink::diag::Attributes;

/// What reads an option on one subflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    // inet_diag, without privilege.
    TcpInfo,
    CongestionControl,
    CongestionControlInfo,
    SegmentSize,
    MaxPacingRate,
    SendBuffer,
    ReceiveBuffer,
    MemInfo,
    Interface,
    Cookie,
    Tos,
    TrafficClass,
    // inet_diag with CAP_NET_ADMIN, else BPF.
    Mark,
    // bpf_getsockopt, for nothing else tells.
    Bpf,
}

/// An option with a name.
struct Known {
    level: i32,
    number: i32,
    name: &'static str,
    source: Source,
}

const fn known(level: i32, number: i32, name: &'static str, source: Source) -> Known {
    Known { level, number, name, source }
}

/// The options that something reads or that BPF can reach. The kernel decides about all others.
const KNOWN: [Known; 38] = {
    use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};
    [
        known(SOL_SOCKET, libc::SO_REUSEADDR, "SO_REUSEADDR", Source::Bpf),
        known(SOL_SOCKET, libc::SO_SNDBUF, "SO_SNDBUF", Source::SendBuffer),
        known(SOL_SOCKET, libc::SO_RCVBUF, "SO_RCVBUF", Source::ReceiveBuffer),
        known(SOL_SOCKET, libc::SO_KEEPALIVE, "SO_KEEPALIVE", Source::Bpf),
        known(SOL_SOCKET, libc::SO_PRIORITY, "SO_PRIORITY", Source::Bpf),
        known(SOL_SOCKET, libc::SO_REUSEPORT, "SO_REUSEPORT", Source::Bpf),
        known(SOL_SOCKET, libc::SO_RCVLOWAT, "SO_RCVLOWAT", Source::Bpf),
        known(SOL_SOCKET, libc::SO_BINDTODEVICE, "SO_BINDTODEVICE", Source::Bpf),
        known(SOL_SOCKET, libc::SO_MARK, "SO_MARK", Source::Mark),
        known(SOL_SOCKET, libc::SO_MAX_PACING_RATE, "SO_MAX_PACING_RATE", Source::MaxPacingRate),
        known(SOL_SOCKET, libc::SO_MEMINFO, "SO_MEMINFO", Source::MemInfo),
        known(SOL_SOCKET, libc::SO_COOKIE, "SO_COOKIE", Source::Cookie),
        known(SOL_SOCKET, libc::SO_BINDTOIFINDEX, "SO_BINDTOIFINDEX", Source::Interface),
        known(SOL_SOCKET, uapi::SO_TXREHASH, "SO_TXREHASH", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_NODELAY, "TCP_NODELAY", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_MAXSEG, "TCP_MAXSEG", Source::SegmentSize),
        known(IPPROTO_TCP, libc::TCP_CORK, "TCP_CORK", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_KEEPIDLE, "TCP_KEEPIDLE", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_KEEPINTVL, "TCP_KEEPINTVL", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_KEEPCNT, "TCP_KEEPCNT", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_SYNCNT, "TCP_SYNCNT", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_INFO, "TCP_INFO", Source::TcpInfo),
        known(IPPROTO_TCP, libc::TCP_QUICKACK, "TCP_QUICKACK", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_CONGESTION, "TCP_CONGESTION", Source::CongestionControl),
        known(IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, "TCP_THIN_LINEAR_TIMEOUTS", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT", Source::Bpf),
        known(IPPROTO_TCP, libc::TCP_CC_INFO, "TCP_CC_INFO", Source::CongestionControlInfo),
        known(IPPROTO_TCP, libc::TCP_SAVE_SYN, "TCP_SAVE_SYN", Source::Bpf),
        known(IPPROTO_TCP, uapi::TCP_RTO_MAX_MS, "TCP_RTO_MAX_MS", Source::Bpf),
        known(IPPROTO_TCP, uapi::TCP_BPF_IW, "TCP_BPF_IW", Source::Bpf),
        known(IPPROTO_TCP, uapi::TCP_BPF_SNDCWND_CLAMP, "TCP_BPF_SNDCWND_CLAMP", Source::Bpf),
        known(IPPROTO_TCP, uapi::TCP_BPF_DELACK_MAX, "TCP_BPF_DELACK_MAX", Source::Bpf),
        known(IPPROTO_TCP, uapi::TCP_BPF_RTO_MIN, "TCP_BPF_RTO_MIN", Source::Bpf),
        known(IPPROTO_IP, libc::IP_TOS, "IP_TOS", Source::Tos),
        known(IPPROTO_IPV6, libc::IPV6_TCLASS, "IPV6_TCLASS", Source::TrafficClass),
        known(IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL, "IPV6_AUTOFLOWLABEL", Source::Bpf),
    ]
};

/// An option by its numbers, known or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOption {
    pub level: i32,
    pub number: i32,
}

pub const TCP_CONGESTION: SocketOption =
    SocketOption { level: libc::IPPROTO_TCP, number: libc::TCP_CONGESTION };
pub const SO_BINDTODEVICE: SocketOption =
    SocketOption { level: libc::SOL_SOCKET, number: libc::SO_BINDTODEVICE };
pub const SO_RCVLOWAT: SocketOption = SocketOption { level: libc::SOL_SOCKET, number: libc::SO_RCVLOWAT };

impl SocketOption {
    fn known(self) -> Option<&'static Known> {
        KNOWN.iter().find(|known| (known.level, known.number) == (self.level, self.number))
    }

    pub fn source(self) -> Source {
        self.known().map_or(Source::Bpf, |known| known.source)
    }

    /// One whose value is a text and no integer.
    pub fn is_name(self) -> bool {
        self == TCP_CONGESTION || self == SO_BINDTODEVICE
    }
}

/// The option's name in C.
impl std::fmt::Display for SocketOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.known() {
            Some(known) => f.write_str(known.name),
            None => write!(f, "option {} at level {}", self.number, self.level),
        }
    }
}

/// The option's value as getsockopt on the subflow would return it into a buffer of `room` bytes, or the errno that it
/// would fail with. `None` where inet_diag does not tell.
pub fn value(source: Source, told: &Attributes, room: usize) -> Option<Result<Vec<u8>, i32>> {
    let int = |value: u32| Ok(value.to_ne_bytes().to_vec());
    let mut value = match source {
        Source::TcpInfo => Ok(told.tcp_info.clone()),
        Source::CongestionControlInfo => Ok(told.cc_info.clone()),
        Source::CongestionControl => {
            let mut name = told.congestion.clone();
            name.resize(uapi::TCP_CA_NAME_MAX, 0);
            Ok(name)
        }
        Source::SegmentSize => int(tcp_info::field::snd_mss.read(&told.tcp_info)? as u32),
        Source::MaxPacingRate => match tcp_info::field::max_pacing_rate.read(&told.tcp_info)? {
            rate if room >= 8 => Ok(rate.to_ne_bytes().to_vec()),
            rate => int(u32::try_from(rate).unwrap_or(u32::MAX)),
        },
        Source::SendBuffer => int(bytes::u32(&told.meminfo, meminfo::SNDBUF)?),
        Source::ReceiveBuffer => int(bytes::u32(&told.meminfo, meminfo::RCVBUF)?),
        Source::MemInfo => Ok(told.meminfo.clone()),
        Source::Interface => int(told.entry.tuple.interface),
        Source::Cookie if room < 8 => Err(libc::EINVAL),
        Source::Cookie => Ok(told.entry.cookie.to_ne_bytes().to_vec()),
        Source::Tos => int(told.tos?.into()),
        Source::TrafficClass => told.tclass.map_or(Err(libc::ENOPROTOOPT), |class| int(class.into())),
        Source::Mark => int(told.mark?),
        Source::Bpf => return None,
    };
    if let Ok(bytes) = &mut value {
        bytes.truncate(room);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::diag::{Entry, Tuple};

    fn told() -> Attributes {
        let end = "10.0.1.1:1".parse().unwrap();
        let tuple = Tuple { local: end, remote: end, interface: 3 };
        let mut tcp_info = vec![0; 280];
        tcp_info[16..20].copy_from_slice(&1448u32.to_ne_bytes());
        tcp_info[112..120].fill(0xff);
        Attributes {
            entry: Entry { tuple, state: 1, cookie: 77, uid: 0, inode: 0, cgroup: None, subflow: None },
            tcp_info,
            cc_info: vec![],
            congestion: b"cubic".to_vec(),
            tos: Some(16),
            tclass: None,
            meminfo: (0..9u32).flat_map(u32::to_ne_bytes).collect(),
            mark: None,
        }
    }

    #[test]
    fn no_option_is_there_twice() {
        for (i, one) in KNOWN.iter().enumerate() {
            assert!(KNOWN[..i].iter().all(|other| (one.level, one.number) != (other.level, other.number)));
        }
    }

    #[test]
    fn an_option_has_its_name_in_c() {
        assert_eq!(TCP_CONGESTION.to_string(), "TCP_CONGESTION");
        assert_eq!(SocketOption { level: 6, number: 999 }.to_string(), "option 999 at level 6");
    }

    #[test]
    fn values_are_those_of_getsockopt() {
        let told = told();
        let int = |value: u32| Some(Ok(value.to_ne_bytes().to_vec()));
        assert_eq!(
            value(Source::CongestionControl, &told, 100),
            Some(Ok(b"cubic\0\0\0\0\0\0\0\0\0\0\0".to_vec()))
        );
        assert_eq!(value(Source::CongestionControl, &told, 2), Some(Ok(b"cu".to_vec())));
        assert_eq!(value(Source::SegmentSize, &told, 4), int(1448));
        assert_eq!(value(Source::MaxPacingRate, &told, 4), int(u32::MAX));
        assert_eq!(value(Source::MaxPacingRate, &told, 8), Some(Ok(vec![255; 8])));
        assert_eq!(value(Source::SendBuffer, &told, 4), int(3));
        assert_eq!(value(Source::ReceiveBuffer, &told, 4), int(1));
        assert_eq!(value(Source::Interface, &told, 4), int(3));
        assert_eq!(value(Source::Cookie, &told, 8), Some(Ok(77u64.to_ne_bytes().to_vec())));
        assert_eq!(value(Source::Cookie, &told, 4), Some(Err(libc::EINVAL)));
        assert_eq!(value(Source::Tos, &told, 4), int(16));
        assert_eq!(value(Source::TrafficClass, &told, 4), Some(Err(libc::ENOPROTOOPT)));
        assert_eq!(value(Source::Mark, &told, 4), None);
        assert_eq!(value(Source::CongestionControlInfo, &told, 20), Some(Ok(vec![])));
    }
}
