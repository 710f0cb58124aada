//! Which system calls the supervisor hears of. Everything else runs at full speed: of calls that are allowed whatever
//! their arguments, the kernel remembers that and runs no filter. Those of the machine's 32-bit interface pass by.

use crate::abi::seccomp::{self, Condition, Rule, ALL};
use crate::abi::uapi::enhanced_api as api;

/// `SOCK_TYPE_MASK` of `<linux/net.h>`: the rest of socket()'s type is flags.
pub const SOCK_TYPE_MASK: i32 = 0xf;

/// Whichever layout an option's number stands for.
const EITHER_LAYOUT: i32 = !api::HEADER;
const LEVEL: Condition = Condition { argument: 1, mask: ALL, values: &[libc::IPPROTO_TCP] };

const RULES: [Rule; 3] = [
    Rule {
        number: libc::SYS_socket,
        conditions: &[
            Condition { argument: 0, mask: ALL, values: &[libc::AF_INET, libc::AF_INET6] },
            Condition { argument: 1, mask: SOCK_TYPE_MASK, values: &[libc::SOCK_STREAM] },
            Condition { argument: 2, mask: ALL, values: &[0, libc::IPPROTO_TCP] },
        ],
    },
    Rule {
        number: libc::SYS_getsockopt,
        conditions: &[
            LEVEL,
            Condition {
                argument: 2,
                mask: EITHER_LAYOUT,
                values: &[
                    api::MPTCP_GET_SUB_IDS,
                    api::MPTCP_CLOSE_SUB_ID,
                    api::MPTCP_GET_SUB_TUPLE,
                    api::MPTCP_OPEN_SUB_TUPLE,
                    api::MPTCP_SUB_GETSOCKOPT,
                ],
            },
        ],
    },
    Rule {
        number: libc::SYS_setsockopt,
        conditions: &[
            LEVEL,
            Condition { argument: 2, mask: EITHER_LAYOUT, values: &[api::MPTCP_SUB_SETSOCKOPT] },
        ],
    },
];

/// The program, or `None` on a machine that it was not written for.
pub fn program() -> Option<Vec<libc::sock_filter>> {
    let pass = libc::SECCOMP_RET_ALLOW;
    seccomp::program(&[(&RULES, libc::SECCOMP_RET_USER_NOTIF)], pass, pass)
}

#[cfg(test)]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tests {
    use super::*;

    fn is_caught(arch: u32, number: libc::c_long, arguments: [i32; 3]) -> bool {
        seccomp::run(&program().unwrap(), arch, number, &arguments) == libc::SECCOMP_RET_USER_NOTIF
    }

    fn here(number: libc::c_long, arguments: [i32; 3]) -> bool {
        is_caught(seccomp::AUDIT_ARCH.unwrap(), number, arguments)
    }

    #[test]
    fn sockets_of_tcp_are_caught_and_no_others() {
        for family in 0..20 {
            for kind in 0..10 {
                for protocol in [0, 1, 6, 17, 132, 262, -1] {
                    let is_tcp = [2, 10].contains(&family) && kind == 1 && [0, 6].contains(&protocol);
                    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                    assert_eq!(here(libc::SYS_socket, [family, kind, protocol]), is_tcp);
                    assert_eq!(here(libc::SYS_socket, [family, kind | flags, protocol]), is_tcp);
                }
            }
        }
    }

    #[test]
    fn the_six_options_are_caught_and_no_others() {
        for level in [-1, 0, 1, 5, 6, 7, 41, 284] {
            for option in (0..0x300).chain(0x4000..0x4300).chain([-1, i32::MAX, i32::MIN, 66 << 16]) {
                let number = option & !0x4000;
                let get = level == 6 && [66, 67, 68, 69, 71].contains(&number);
                let set = level == 6 && number == 72;
                assert_eq!(here(libc::SYS_getsockopt, [3, level, option]), get, "{level} {option}");
                assert_eq!(here(libc::SYS_setsockopt, [3, level, option]), set, "{level} {option}");
            }
        }
    }

    #[test]
    fn other_calls_and_other_machines_pass() {
        let others = [libc::SYS_read, libc::SYS_connect, libc::SYS_sendto, libc::SYS_socketpair];
        for number in others {
            assert!(!here(number, [2, 1, 6]) && !here(number, [3, 6, 66]));
        }
        let i386 = 0x4000_0003;
        assert!(!is_caught(i386, libc::SYS_socket, [2, 1, 6]));
        assert!(!here(libc::SYS_socket | 0x4000_0000, [2, 1, 6]), "the x32 interface");
    }
}
