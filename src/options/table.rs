//! Socket options as the kernel's headers name them, and what reads each of them on one subflow. Pure.

use crate::abi::bytes;
use crate::abi::tcp_info;
use crate::abi::uapi::{self, meminfo};
use crate::netlink::diag::Attributes;

/// What reads an option on one subflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadBy {
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
struct Named {
    level: i32,
    number: i32,
    name: &'static str,
    read_by: ReadBy,
}

const fn named(level: i32, number: i32, name: &'static str, read_by: ReadBy) -> Named {
    Named { level, number, name, read_by }
}

/// The options that something reads or that BPF can reach. The kernel decides about all others.
const NAMED: [Named; 38] = {
    use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};
    [
        named(SOL_SOCKET, libc::SO_REUSEADDR, "SO_REUSEADDR", ReadBy::Bpf),
        named(SOL_SOCKET, libc::SO_SNDBUF, "SO_SNDBUF", ReadBy::SendBuffer),
        named(SOL_SOCKET, libc::SO_RCVBUF, "SO_RCVBUF", ReadBy::ReceiveBuffer),
        named(SOL_SOCKET, libc::SO_KEEPALIVE, "SO_KEEPALIVE", ReadBy::Bpf),
        named(SOL_SOCKET, libc::SO_PRIORITY, "SO_PRIORITY", ReadBy::Bpf),
        named(SOL_SOCKET, libc::SO_REUSEPORT, "SO_REUSEPORT", ReadBy::Bpf),
        named(SOL_SOCKET, libc::SO_RCVLOWAT, "SO_RCVLOWAT", ReadBy::Bpf),
        named(SOL_SOCKET, libc::SO_BINDTODEVICE, "SO_BINDTODEVICE", ReadBy::Bpf),
        named(SOL_SOCKET, libc::SO_MARK, "SO_MARK", ReadBy::Mark),
        named(SOL_SOCKET, libc::SO_MAX_PACING_RATE, "SO_MAX_PACING_RATE", ReadBy::MaxPacingRate),
        named(SOL_SOCKET, libc::SO_MEMINFO, "SO_MEMINFO", ReadBy::MemInfo),
        named(SOL_SOCKET, libc::SO_COOKIE, "SO_COOKIE", ReadBy::Cookie),
        named(SOL_SOCKET, libc::SO_BINDTOIFINDEX, "SO_BINDTOIFINDEX", ReadBy::Interface),
        named(SOL_SOCKET, uapi::SO_TXREHASH, "SO_TXREHASH", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_NODELAY, "TCP_NODELAY", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_MAXSEG, "TCP_MAXSEG", ReadBy::SegmentSize),
        named(IPPROTO_TCP, libc::TCP_CORK, "TCP_CORK", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_KEEPIDLE, "TCP_KEEPIDLE", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_KEEPINTVL, "TCP_KEEPINTVL", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_KEEPCNT, "TCP_KEEPCNT", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_SYNCNT, "TCP_SYNCNT", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_INFO, "TCP_INFO", ReadBy::TcpInfo),
        named(IPPROTO_TCP, libc::TCP_QUICKACK, "TCP_QUICKACK", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_CONGESTION, "TCP_CONGESTION", ReadBy::CongestionControl),
        named(IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, "TCP_THIN_LINEAR_TIMEOUTS", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT", ReadBy::Bpf),
        named(IPPROTO_TCP, libc::TCP_CC_INFO, "TCP_CC_INFO", ReadBy::CongestionControlInfo),
        named(IPPROTO_TCP, libc::TCP_SAVE_SYN, "TCP_SAVE_SYN", ReadBy::Bpf),
        named(IPPROTO_TCP, uapi::TCP_RTO_MAX_MS, "TCP_RTO_MAX_MS", ReadBy::Bpf),
        named(IPPROTO_TCP, uapi::TCP_BPF_IW, "TCP_BPF_IW", ReadBy::Bpf),
        named(IPPROTO_TCP, uapi::TCP_BPF_SNDCWND_CLAMP, "TCP_BPF_SNDCWND_CLAMP", ReadBy::Bpf),
        named(IPPROTO_TCP, uapi::TCP_BPF_DELACK_MAX, "TCP_BPF_DELACK_MAX", ReadBy::Bpf),
        named(IPPROTO_TCP, uapi::TCP_BPF_RTO_MIN, "TCP_BPF_RTO_MIN", ReadBy::Bpf),
        named(IPPROTO_IP, libc::IP_TOS, "IP_TOS", ReadBy::Tos),
        named(IPPROTO_IPV6, libc::IPV6_TCLASS, "IPV6_TCLASS", ReadBy::TrafficClass),
        named(IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL, "IPV6_AUTOFLOWLABEL", ReadBy::Bpf),
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
pub const SO_BINDTOIFINDEX: SocketOption =
    SocketOption { level: libc::SOL_SOCKET, number: libc::SO_BINDTOIFINDEX };
pub const SO_RCVLOWAT: SocketOption = SocketOption { level: libc::SOL_SOCKET, number: libc::SO_RCVLOWAT };

impl SocketOption {
    fn named(self) -> Option<&'static Named> {
        NAMED.iter().find(|named| (named.level, named.number) == (self.level, self.number))
    }

    pub fn read_by(self) -> ReadBy {
        self.named().map_or(ReadBy::Bpf, |named| named.read_by)
    }

    /// One whose value is a text and no integer.
    pub fn is_name(self) -> bool {
        self == TCP_CONGESTION || self == SO_BINDTODEVICE
    }
}

/// The option's name in C.
impl std::fmt::Display for SocketOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.named() {
            Some(named) => f.write_str(named.name),
            None => write!(f, "option {} at level {}", self.number, self.level),
        }
    }
}

/// The option's value as getsockopt on the subflow would return it into a buffer of `room` bytes, or the errno that it
/// would fail with. `None` where inet_diag does not tell.
pub fn value(read_by: ReadBy, told: &Attributes, room: usize) -> Option<Result<Vec<u8>, i32>> {
    let int = |value: u32| Ok(value.to_ne_bytes().to_vec());
    let mut value = match read_by {
        ReadBy::TcpInfo => Ok(told.tcp_info.clone()),
        ReadBy::CongestionControlInfo => Ok(told.cc_info.clone()),
        ReadBy::CongestionControl => {
            let mut name = told.congestion.clone();
            name.resize(uapi::TCP_CA_NAME_MAX, 0);
            Ok(name)
        }
        ReadBy::SegmentSize => int(tcp_info::field::snd_mss.read(&told.tcp_info)? as u32),
        ReadBy::MaxPacingRate => match tcp_info::field::max_pacing_rate.read(&told.tcp_info)? {
            rate if room >= 8 => Ok(rate.to_ne_bytes().to_vec()),
            rate => int(u32::try_from(rate).unwrap_or(u32::MAX)),
        },
        ReadBy::SendBuffer => int(bytes::u32(&told.meminfo, meminfo::SNDBUF)?),
        ReadBy::ReceiveBuffer => int(bytes::u32(&told.meminfo, meminfo::RCVBUF)?),
        ReadBy::MemInfo => Ok(told.meminfo.clone()),
        ReadBy::Interface => int(told.entry.tuple.interface),
        ReadBy::Cookie if room < 8 => Err(libc::EINVAL),
        ReadBy::Cookie => Ok(told.entry.cookie.to_ne_bytes().to_vec()),
        ReadBy::Tos => int(told.tos?.into()),
        ReadBy::TrafficClass => told.tclass.map_or(Err(libc::ENOPROTOOPT), |class| int(class.into())),
        ReadBy::Mark => int(told.mark?),
        ReadBy::Bpf => return None,
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
        for (i, one) in NAMED.iter().enumerate() {
            assert!(NAMED[..i].iter().all(|other| (one.level, one.number) != (other.level, other.number)));
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
            value(ReadBy::CongestionControl, &told, 100),
            Some(Ok(b"cubic\0\0\0\0\0\0\0\0\0\0\0".to_vec()))
        );
        assert_eq!(value(ReadBy::CongestionControl, &told, 2), Some(Ok(b"cu".to_vec())));
        assert_eq!(value(ReadBy::SegmentSize, &told, 4), int(1448));
        assert_eq!(value(ReadBy::MaxPacingRate, &told, 4), int(u32::MAX));
        assert_eq!(value(ReadBy::MaxPacingRate, &told, 8), Some(Ok(vec![255; 8])));
        assert_eq!(value(ReadBy::SendBuffer, &told, 4), int(3));
        assert_eq!(value(ReadBy::ReceiveBuffer, &told, 4), int(1));
        assert_eq!(value(ReadBy::Interface, &told, 4), int(3));
        assert_eq!(value(ReadBy::Cookie, &told, 8), Some(Ok(77u64.to_ne_bytes().to_vec())));
        assert_eq!(value(ReadBy::Cookie, &told, 4), Some(Err(libc::EINVAL)));
        assert_eq!(value(ReadBy::Tos, &told, 4), int(16));
        assert_eq!(value(ReadBy::TrafficClass, &told, 4), Some(Err(libc::ENOPROTOOPT)));
        assert_eq!(value(ReadBy::Mark, &told, 4), None);
        assert_eq!(value(ReadBy::CongestionControlInfo, &told, 20), Some(Ok(vec![])));
    }
}
