//! Socket options on subflows of a caller's connection: those that he could set on a socket of his own, which BPF does
//! not check.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::abi::bytes;
use crate::abi::uapi::TCP_CA_NAME_MAX;
use crate::netlink::broker::codec::{OptionRequest, OptionResult};
use crate::options::bpf::{self, Action, Request, Visit};

/// The highest SO_PRIORITY that takes no privilege.
const HIGHEST_PRIORITY: u32 = 6;

/// What an ordinary user may set is read here while the broker runs.
#[derive(Debug)]
pub struct Limits {
    /// net.ipv4.tcp_allowed_congestion_control
    congestion_controls: io::Result<File>,
    /// What serves the options; the errno and the sentence of what was in its way.
    program: Result<(), (i32, String)>,
}

impl Limits {
    /// Loads the program that serves options, which takes CAP_BPF and CAP_PERFMON. That this fails is told to those who
    /// ask for options.
    pub fn loaded() -> Limits {
        Limits {
            program: bpf::serve(&[], None).map(drop).map_err(|error| (error.errno(), error.to_string())),
            ..Limits::without_options()
        }
    }

    /// Where nobody may set any.
    pub fn without_options() -> Limits {
        let file = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
        let program = Err((libc::EPERM, "its rules do not allow socket options on one subflow".to_owned()));
        Limits { congestion_controls: File::open(file), program }
    }

    fn is_congestion_control_allowed(&self, name: &[u8]) -> bool {
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let Ok(file) = &self.congestion_controls else { return false };
        let mut text = [0; 1024];
        let Ok(length) = file.read_at(&mut text, 0) else { return false };
        !name.is_empty()
            && name.len() < TCP_CA_NAME_MAX
            && text[..length].split(u8::is_ascii_whitespace).any(|allowed| allowed == name)
    }

    /// Whether setsockopt() would let an ordinary user set this; EPERM if not.
    fn check(&self, level: i32, name: i32, value: &[u8]) -> Result<(), i32> {
        let number = bytes::u32(value, 0);
        let allowed = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_PRIORITY) => number.is_some_and(|number| number <= HIGHEST_PRIORITY),
            (
                libc::SOL_SOCKET,
                libc::SO_SNDBUF | libc::SO_RCVBUF | libc::SO_KEEPALIVE | libc::SO_MAX_PACING_RATE,
            ) => true,
            (libc::IPPROTO_TCP, libc::TCP_CONGESTION) => self.is_congestion_control_allowed(value),
            (
                libc::IPPROTO_TCP,
                libc::TCP_NODELAY
                | libc::TCP_MAXSEG
                | libc::TCP_CORK
                | libc::TCP_KEEPIDLE
                | libc::TCP_KEEPINTVL
                | libc::TCP_KEEPCNT
                | libc::TCP_SYNCNT
                | libc::TCP_WINDOW_CLAMP
                | libc::TCP_QUICKACK
                | libc::TCP_THIN_LINEAR_TIMEOUTS
                | libc::TCP_USER_TIMEOUT
                | libc::TCP_NOTSENT_LOWAT,
            ) => true,
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => true,
            _ => false,
        };
        if allowed {
            Ok(())
        } else {
            Err(libc::EPERM)
        }
    }

    /// Serves requests for subflows that are the caller's, in order.
    pub fn serve(&self, requests: &[OptionRequest]) -> crate::error::Result<Vec<OptionResult>> {
        let checked: Vec<Result<Request, i32>> = requests
            .iter()
            .map(|request| {
                let action = match &request.value {
                    None => Action::Get(request.room),
                    Some(value) => {
                        self.check(request.level, request.name, value)?;
                        Action::Set(value.clone())
                    }
                };
                Ok(Request { cookie: request.cookie, level: request.level, name: request.name, action })
            })
            .collect();
        let allowed: Vec<Request> = checked.iter().flatten().cloned().collect();
        let visits = match &self.program {
            _ if allowed.is_empty() => Vec::new(),
            Ok(()) => bpf::serve(&allowed, None)?,
            Err((errno, text)) => return Err(crate::error::Error::os(*errno, text.clone())),
        };
        let mut visits = visits.into_iter();
        let result = |request: Result<Request, i32>| match request {
            Err(errno) => Err(errno),
            Ok(_) => match visits.next() {
                Some(Visit::Done(value)) => Ok(value),
                Some(Visit::Refused(errno)) => Err(errno),
                Some(Visit::NotMet) | None => Err(0),
            },
        };
        Ok(checked.into_iter().map(result).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_privilege_is_refused() {
        let limits = Limits::without_options();
        let check = |level, name, value: &[u8]| limits.check(level, name, value);
        let socket = libc::SOL_SOCKET;
        assert_eq!(check(socket, libc::SO_PRIORITY, &6u32.to_ne_bytes()), Ok(()));
        assert_eq!(check(socket, libc::SO_PRIORITY, &7u32.to_ne_bytes()), Err(libc::EPERM));
        assert_eq!(check(socket, libc::SO_PRIORITY, &[]), Err(libc::EPERM));
        for refused in [libc::SO_MARK, libc::SO_BINDTODEVICE, libc::SO_RCVBUFFORCE, libc::SO_REUSEPORT] {
            assert_eq!(check(socket, refused, &[0; 4]), Err(libc::EPERM));
        }
        let tcp = libc::IPPROTO_TCP;
        for refused in [crate::abi::uapi::TCP_BPF_IW, libc::TCP_REPAIR, libc::TCP_SAVE_SYN, 9999] {
            assert_eq!(check(tcp, refused, &[0; 4]), Err(libc::EPERM));
        }
        assert_eq!(check(tcp, libc::TCP_NODELAY, &[1, 0, 0, 0]), Ok(()));
        for wrong in [&b""[..], b"\0", b"no-such-control", b"reno cubic", &[b'x'; 100]] {
            assert_eq!(check(tcp, libc::TCP_CONGESTION, wrong), Err(libc::EPERM));
        }
        assert_eq!(check(tcp, libc::TCP_CONGESTION, b"reno\0"), Ok(()), "reno is always allowed");
    }
}
